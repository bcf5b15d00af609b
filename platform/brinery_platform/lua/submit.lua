-- id, endpoint, owner, priority, idempotency key or '', max_queued, seconds it may wait, then the record's fields and
-- values -> {'created', created_at, expires_at} | {'exists', record} | {'full', size}
-- The times in the record are those of this server's clock, whatever the caller's says.
local id, endpoint, owner, priority, idempotency_key = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local found = redis.call('HGETALL', 'task:' .. id)
if #found > 0 then
  return { 'exists', found }
end
local key = 'idempotency:' .. owner .. ':' .. endpoint .. ':' .. idempotency_key
if idempotency_key ~= '' then
  local other = redis.call('GET', key)
  found = other and redis.call('HGETALL', 'task:' .. other) or {}
  if #found > 0 then
    return { 'exists', found }
  end
end
local size = redis.call('ZCARD', 'open:' .. endpoint)
if size >= tonumber(ARGV[6]) then
  return { 'full', size }
end
local at = now()
local expires = text(at + tonumber(ARGV[7]))
redis.call('HSET', 'task:' .. id, unpack(ARGV, 8))
redis.call('HSET', 'task:' .. id, 'created_at', text(at), 'expires_at', expires)
redis.call('ZADD', 'deadlines', expires, id)
redis.call('SADD', 'endpoints', endpoint)
if idempotency_key ~= '' then
  redis.call('SET', key, id)
end
local sequence = enqueue(id, endpoint, priority, at)
redis.call('ZADD', 'open:' .. endpoint, sequence, id)
redis.call('ZADD', listing_key(owner, 'queued'), sequence, id)
event(id, 'queued', at, 'submitted')
return { 'created', text(at), expires }
