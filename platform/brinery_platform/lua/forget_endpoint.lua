-- endpoint, batch, error of the tasks that it cancels -> {cancelled now, still open}
local endpoint = ARGV[1]
local at = now()
local cancelled = 0
for _, id in ipairs(redis.call('ZRANGE', 'open:' .. endpoint, 0, tonumber(ARGV[2]) - 1)) do
  if cancel(id, at, 'endpoint deleted', ARGV[3]) == 'cancelled' then
    cancelled = cancelled + 1
  end
end
local left = redis.call('ZCARD', 'open:' .. endpoint)
if left == 0 then
  for priority = 0, 9 do
    redis.call('DEL', queue_key(endpoint, priority))
  end
  redis.call('DEL', 'dead:' .. endpoint, finished_key(endpoint))
end
return { cancelled, left }
