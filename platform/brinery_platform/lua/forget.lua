-- id... -> records deleted. Their objects are gone already.
local at = now()
local forgotten = 0
for _, id in ipairs(ARGV) do
  local until_at = redis.call('ZSCORE', 'retention', id)
  if until_at and tonumber(until_at) <= at then
    local owner, endpoint, idempotency_key =
      unpack(redis.call('HMGET', 'task:' .. id, 'owner', 'endpoint_id', 'idempotency_key'))
    if idempotency_key then
      local key = 'idempotency:' .. owner .. ':' .. endpoint .. ':' .. idempotency_key
      if redis.call('GET', key) == id then
        redis.call('DEL', key)
      end
    end
    redis.call('ZREM', 'retention', id)
    redis.call('ZREM', 'dead:' .. endpoint, id)
    redis.call('ZREM', 'tasks:' .. owner, id)
    redis.call('DEL', 'task:' .. id, 'events:' .. id)
    forgotten = forgotten + 1
  end
end
return forgotten
