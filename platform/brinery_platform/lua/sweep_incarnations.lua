-- lease in seconds, batch, jitter -> tasks requeued. A gap since the last sweep may be Redis' own (a frozen server
-- expires every lease with nobody dead), so after one everybody gets a whole lease to come back.
local lease, batch, jitter = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local at = now()
local last = tonumber(redis.call('GET', 'sweep:at') or '0')
redis.call('SET', 'sweep:at', text(at))
if at - last > lease / 2 then
  redis.call('SET', 'sweep:judge_after', text(at + lease))
end
if at < tonumber(redis.call('GET', 'sweep:judge_after') or '0') then
  return 0
end
local requeued = 0
for _, incarnation in ipairs(redis.call('SMEMBERS', 'incarnations')) do
  if requeued < batch and not alive(incarnation) then
    requeued = requeued + reclaim(incarnation, at, batch - requeued, jitter)
  end
end
return requeued
