-- id -> 'dropped' | 'not_final' | 'gone'. No dead letter any more; the next sweep deletes it with its objects.
local id = ARGV[1]
local status, endpoint = unpack(redis.call('HMGET', 'task:' .. id, 'status', 'endpoint_id'))
if not status then
  return 'gone'
end
if not FINAL[status] then
  return 'not_final'
end
redis.call('ZREM', 'dead:' .. endpoint, id)
redis.call('ZREM', 'webhooks', id)
redis.call('ZADD', 'retention', text(now()), id)
return 'dropped'
