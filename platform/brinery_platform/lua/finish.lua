-- id, attempt, incarnation, claim, status, reason, '1' for a dead letter, report of the attempt or '', then fields
-- and values
-- -> 'finished' | 'stale' | 'gone'
local id = ARGV[1]
local key = 'task:' .. id
local status, attempt, incarnation, claim =
  unpack(redis.call('HMGET', key, 'status', 'attempt', 'incarnation', 'claim'))
if not status then
  return 'gone'
end
if status ~= 'running' or attempt ~= ARGV[2] or incarnation ~= ARGV[3] or claim ~= ARGV[4] then
  return 'stale'
end
if #ARGV > 8 then
  redis.call('HSET', key, unpack(ARGV, 9))
end
note_attempt(id, ARGV[8])
close(id, ARGV[5], now(), ARGV[6], ARGV[7] == '1')
return 'finished'
