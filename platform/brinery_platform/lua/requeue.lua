-- id, attempt, incarnation, claim, '1' for charged, delay in seconds or '' for the back-off, jitter, reason, error
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
return requeue(id, now(), ARGV[5] == '1', delay, tonumber(ARGV[7]), ARGV[8], ARGV[9])
