-- id, attempt, incarnation, claim, charge, delay in seconds or '' for the back-off, jitter, reason, error,
-- report of the attempt or '', '1' for a worker of its own next time
-- -> 'queued' | 'failed' | 'cancelled' | 'stale' | 'gone'
local id = ARGV[1]
local status, attempt, incarnation, claim =
  unpack(redis.call('HMGET', 'task:' .. id, 'status', 'attempt', 'incarnation', 'claim'))
if not status then
  return 'gone'
end
if status ~= 'running' or attempt ~= ARGV[2] or incarnation ~= ARGV[3] or claim ~= ARGV[4] then
  return 'stale'
end
local delay = nil
if ARGV[6] ~= '' then
  delay = tonumber(ARGV[6])
end
if ARGV[11] == '1' then
  redis.call('HSET', 'task:' .. id, 'alone', '1')
end
return requeue(id, now(), ARGV[5], delay, tonumber(ARGV[7]), ARGV[8], ARGV[9], ARGV[10])
