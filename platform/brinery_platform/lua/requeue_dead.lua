-- id -> 'queued' | 'not_failed' | 'gone'. A failed task starts again with all its attempts.
local id = ARGV[1]
local key = 'task:' .. id
local status, endpoint, priority, wait =
  unpack(redis.call('HMGET', key, 'status', 'endpoint_id', 'priority', 'wait_seconds'))
if not status then
  return 'gone'
end
if status ~= 'failed' then
  return 'not_failed'
end
local at = now()
redis.call('HDEL', key, 'error', 'finished_at', 'started_at', 'incarnation', 'cancel_requested')
redis.call('HSET', key, 'attempt', '0', 'expires_at', text(at + tonumber(wait)))
redis.call('ZREM', 'dead:' .. endpoint, id)
redis.call('ZREM', 'retention', id)
redis.call('ZADD', 'deadlines', text(at + tonumber(wait)), id)
redis.call('SADD', 'endpoints', endpoint)
redis.call('ZADD', 'open:' .. endpoint, enqueue(id, endpoint, priority, at), id)
event(id, 'queued', at, 'requeued by hand')
return 'queued'
