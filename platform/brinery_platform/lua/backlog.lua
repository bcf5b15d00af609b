-- endpoint -> {open, queued and not delayed, when the oldest of these was queued or ''}
local endpoint = ARGV[1]
local queued, oldest = 0, nil
for rank = 0, 9 do
  local key = waiting_key(endpoint, rank)
  local first = redis.call('ZRANGE', key, 0, 0)
  if #first > 0 then
    queued = queued + redis.call('ZCARD', key)
    local at = tonumber(redis.call('HGET', 'task:' .. first[1], 'queued_at'))
    oldest = math.min(oldest or at, at)
  end
end
return { redis.call('ZCARD', 'open:' .. endpoint), queued, oldest and text(oldest) or '' }
