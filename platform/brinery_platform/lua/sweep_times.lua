-- batch -> {published, expired}. Delays that are over, and tasks that waited too long.
local batch = tonumber(ARGV[1])
local at = now()
local late = redis.call('ZRANGEBYSCORE', 'deadlines', '-inf', text(at), 'LIMIT', 0, batch)
for _, id in ipairs(late) do
  if not is_ghost(id) then
    redis.call('HSET', 'task:' .. id, 'error', EXPIRED)
    close(id, 'expired', at, 'expired in the queue', false)
  end
end
local due = redis.call('ZRANGEBYSCORE', 'due', '-inf', text(at), 'LIMIT', 0, batch)
for _, id in ipairs(due) do
  if not is_ghost(id) then
    local endpoint, priority = unpack(redis.call('HMGET', 'task:' .. id, 'endpoint_id', 'priority'))
    redis.call('ZREM', 'due', id)
    enqueue(id, endpoint, priority, at)
  end
end
return { #due, #late }
