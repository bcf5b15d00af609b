-- What the transitions share; stands in front of each of them. Python puts three texts in place of %NAMES%:
-- the message that Celery would publish, and the errors of a task whose forwarder died or never came.
local TEMPLATE = [==[%TEMPLATE%]==]
local LOST = [==[%LOST%]==]
local EXPIRED = [==[%EXPIRED%]==]
local EVENTS_KEPT = 64
local BACKOFF_FIRST_SECONDS = 1
local BACKOFF_MOST_SECONDS = 300
local FINAL = { succeeded = true, failed = true, cancelled = true, expired = true }

local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

-- Lua writes numbers with 14 digits; a time with microseconds has 16.
local function text(number)
  return string.format('%.6f', number)
end

local function waiting_key(endpoint, priority)
  return 'waiting:' .. endpoint .. ':' .. priority
end

-- Where kombu's Redis transport looks for messages of one priority; its most urgent is 0, ours is 9.
local function queue_key(endpoint, priority)
  local step = 9 - tonumber(priority)
  if step == 0 then
    return 'endpoint.' .. endpoint
  end
  return 'endpoint.' .. endpoint .. '\6\22' .. step
end

local function message(id, endpoint, priority, sequence)
  local filled = TEMPLATE:gsub('@ID@', id):gsub('@QUEUE@', 'endpoint.' .. endpoint)
  filled = filled:gsub('"@PRIORITY@"', tostring(9 - tonumber(priority))):gsub('"@SEQUENCE@"', sequence)
  return (filled:gsub('@SEQUENCE@', sequence))
end

local function event(id, status, at, reason)
  local attempt = redis.call('HGET', 'task:' .. id, 'attempt')
  redis.call('XADD', 'events:' .. id, 'MAXLEN', EVENTS_KEPT, '*',
    'status', status, 'at', text(at), 'attempt', attempt or '0', 'reason', reason)
end

-- Puts a message behind all others of its priority and notes where it stands.
local function publish(id, endpoint, priority, at)
  local sequence = string.format('%d', redis.call('INCR', 'sequence'))
  redis.call('HSET', 'task:' .. id, 'published_at', text(at))
  redis.call('ZADD', waiting_key(endpoint, priority), sequence, id)
  redis.call('LPUSH', queue_key(endpoint, priority), message(id, endpoint, priority, sequence))
  return sequence
end

-- Makes a record `queued` from now on and publishes it.
local function enqueue(id, endpoint, priority, at)
  redis.call('HSET', 'task:' .. id, 'status', 'queued', 'queued_at', text(at), 'messages', '1')
  redis.call('HDEL', 'task:' .. id, 'not_before', 'holder')
  return publish(id, endpoint, priority, at)
end

local function alive(incarnation)
  return incarnation and redis.call('EXISTS', 'incarnation:' .. incarnation) == 1
end

-- Ends a task for good and wakes whoever waits for it.
local function close(id, status, at, reason, dead)
  local key = 'task:' .. id
  local endpoint, priority, incarnation, ttl =
    unpack(redis.call('HMGET', key, 'endpoint_id', 'priority', 'incarnation', 'result_ttl_seconds'))
  redis.call('HSET', key, 'status', status, 'finished_at', text(at))
  redis.call('HDEL', key, 'not_before', 'holder', 'claim')
  redis.call('ZREM', 'open:' .. endpoint, id)
  redis.call('ZREM', waiting_key(endpoint, priority), id)
  redis.call('ZREM', 'due', id)
  redis.call('ZREM', 'deadlines', id)
  if incarnation then
    redis.call('SREM', 'running:' .. incarnation, id)
  end
  if redis.call('EXISTS', 'open:' .. endpoint) == 0 then
    redis.call('SREM', 'endpoints', endpoint)
  end
  redis.call('ZADD', 'retention', text(at + tonumber(ttl)), id)
  if dead then
    redis.call('ZADD', 'dead:' .. endpoint, text(at), id)
  end
  event(id, status, at, reason)
  redis.call('PUBLISH', 'done', id)
  return status
end

-- Ends or requeues the attempt that a record is in; the caller has checked that it is `running`.
-- `delay` nil backs off by the number of attempts; `jitter` is a factor from 0.5 to 1.
local function requeue(id, at, charged, delay, jitter, reason, failure)
  local key = 'task:' .. id
  local endpoint, priority, incarnation, attempt, most, cancel, wait, expires = unpack(redis.call('HMGET', key,
    'endpoint_id', 'priority', 'incarnation', 'attempt', 'max_attempts', 'cancel_requested', 'wait_seconds',
    'expires_at'))
  if cancel then
    return close(id, 'cancelled', at, reason, false)
  end
  if charged and tonumber(attempt) >= tonumber(most) then
    redis.call('HSET', key, 'error', failure)
    return close(id, 'failed', at, reason, true)
  end
  if not delay then
    delay = math.min(BACKOFF_MOST_SECONDS, BACKOFF_FIRST_SECONDS * 2 ^ (tonumber(attempt) - 1)) * jitter
  end
  redis.call('SREM', 'running:' .. incarnation, id)
  redis.call('HDEL', key, 'incarnation', 'claim', 'started_at')
  if charged then
    -- Its time in the queue begins again: `expires_in_seconds` bounds waiting, not running.
    expires = text(at + delay + tonumber(wait))
    redis.call('HSET', key, 'expires_at', expires)
  else
    redis.call('HINCRBY', key, 'attempt', -1)
  end
  redis.call('ZADD', 'deadlines', expires, id)
  event(id, 'queued', at, reason)
  if delay > 0 then
    redis.call('HSET', key, 'status', 'queued', 'queued_at', text(at), 'not_before', text(at + delay))
    redis.call('ZADD', 'due', text(at + delay), id)
  else
    enqueue(id, endpoint, priority, at)
  end
  return 'queued'
end

-- Requeues up to `limit` tasks of a dead incarnation and forgets it when none is left.
local function reclaim(incarnation, at, limit, jitter)
  local ids = redis.call('SRANDMEMBER', 'running:' .. incarnation, limit)
  for _, id in ipairs(ids) do
    if redis.call('HGET', 'task:' .. id, 'status') == 'running' then
      requeue(id, at, true, nil, jitter, 'forwarder died', LOST)
    end
    redis.call('SREM', 'running:' .. incarnation, id)
  end
  if redis.call('EXISTS', 'running:' .. incarnation) == 0 then
    redis.call('SREM', 'incarnations', incarnation)
    redis.call('HDEL', 'load', incarnation)
  end
  return #ids
end

local function cancel(id, at, reason)
  local status, incarnation = unpack(redis.call('HMGET', 'task:' .. id, 'status', 'incarnation'))
  if not status then
    return 'gone'
  end
  if FINAL[status] then
    return 'final'
  end
  if status == 'queued' or not alive(incarnation) then
    return close(id, 'cancelled', at, reason, false)
  end
  redis.call('HSET', 'task:' .. id, 'cancel_requested', '1')
  redis.call('PUBLISH', 'cancel', id)
  return 'requested'
end
