-- id -> 'queued' | 'not_failed' | 'gone'. A failed task gets as many attempts again as it was given at first.
local id = ARGV[1]
local key = 'task:' .. id
local status, endpoint, owner, priority, attempt, asked, wait = unpack(redis.call('HMGET', key,
  'status', 'endpoint_id', 'owner', 'priority', 'attempt', 'attempts_asked', 'wait_seconds'))
if not status then
  return 'gone'
end
if status ~= 'failed' then
  return 'not_failed'
end
local at = now()
if tonumber(redis.call('ZSCORE', 'retention', id)) <= at then
  return 'gone' -- its input and result may be deleted already
end
redis.call('HDEL', key, 'error', 'finished_at', 'started_at', 'sent_at', 'answered_at', 'stored_at', 'incarnation',
  'cancel_requested', 'webhook_state')
redis.call('HSET', key, 'max_attempts', attempt + asked, 'expires_at', text(at + tonumber(wait)))
redis.call('ZREM', 'webhooks', id)
relist(id, owner, 'failed', 'queued')
redis.call('ZREM', 'dead:' .. endpoint, id)
redis.call('ZREM', 'retention', id)
redis.call('ZADD', 'deadlines', text(at + tonumber(wait)), id)
redis.call('SADD', 'endpoints', endpoint)
redis.call('ZADD', 'open:' .. endpoint, enqueue(id, endpoint, priority, at), id)
event(id, 'queued', at, 'requeued by hand')
return 'queued'
