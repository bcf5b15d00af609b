-- id... -> records deleted. Their objects are gone already.
local at = now()
local forgotten = 0
for _, id in ipairs(ARGV) do
  local until_at = redis.call('ZSCORE', 'retention', id)
  if until_at and tonumber(until_at) <= at and not is_ghost(id) then
    local owner, endpoint, status, idempotency_key =
      unpack(redis.call('HMGET', 'task:' .. id, 'owner', 'endpoint_id', 'status', 'idempotency_key'))
    if idempotency_key then
      local key = 'idempotency:' .. owner .. ':' .. endpoint .. ':' .. idempotency_key
      if redis.call('GET', key) == id then
        redis.call('DEL', key)
      end
    end
    redis.call('ZREM', 'retention', id)
    redis.call('ZREM', 'dead:' .. endpoint, id)
    redis.call('ZREM', 'webhooks', id)
    redis.call('ZREM', listing_key(owner, status), id)
    redis.call('DEL', 'task:' .. id, 'events:' .. id, 'attempts:' .. id)
    forgotten = forgotten + 1
  end
end
return forgotten
