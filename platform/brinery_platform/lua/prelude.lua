-- What the transitions share; stands in front of each of them. Python puts three texts in place of %NAMES%:
-- the message that Celery would publish, and the errors of a task whose forwarder died or never came.
local TEMPLATE = [==[%TEMPLATE%]==]
local LOST = [==[%LOST%]==]
local EXPIRED = [==[%EXPIRED%]==]
local EVENTS_KEPT = 64
local ATTEMPTS_KEPT = 20
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
  redis.call('PUBLISH', 'changes', id)
end

-- Where an owner's tasks of one status are listed, by the sequence in which they came.
local function listing_key(owner, status)
  return 'tasks:' .. owner .. ':' .. status
end

local function relist(id, owner, before, after)
  local sequence = redis.call('ZSCORE', listing_key(owner, before), id) or redis.call('INCR', 'sequence')
  redis.call('ZREM', listing_key(owner, before), id)
  redis.call('ZADD', listing_key(owner, after), sequence, id)
  return sequence
end

-- Keeps what is known of an attempt that did not succeed; '' for nothing.
local function note_attempt(id, report)
  if report ~= '' then
    redis.call('RPUSH', 'attempts:' .. id, report)
    redis.call('LTRIM', 'attempts:' .. id, -ATTEMPTS_KEPT, -1)
  end
end

-- Puts a message behind all others of a rank, the priority that the task has reached, and notes where it stands.
local function publish(id, endpoint, rank, at)
  local sequence = string.format('%d', redis.call('INCR', 'sequence'))
  redis.call('HSET', 'task:' .. id, 'published_at', text(at), 'rank', rank)
  redis.call('ZADD', waiting_key(endpoint, rank), sequence, id)
  redis.call('LPUSH', queue_key(endpoint, rank), message(id, endpoint, rank, sequence))
  return sequence
end

-- Makes a record `queued` from now on and publishes it.
local function enqueue(id, endpoint, priority, at)
  redis.call('HSET', 'task:' .. id, 'status', 'queued', 'queued_at', text(at), 'messages', '1')
  redis.call('HDEL', 'task:' .. id, 'not_before', 'holder')
  return publish(id, endpoint, priority, at)
end

-- How many tasks of an endpoint have ended, by status; it goes with the endpoint.
local function finished_key(endpoint)
  return 'finished:' .. endpoint
end

-- How many tasks of an endpoint are queued and not delayed, and since when the oldest of them is.
local function standing(endpoint)
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
  return queued, oldest
end

local function alive(incarnation)
  return incarnation and redis.call('EXISTS', 'incarnation:' .. incarnation) == 1
end

-- Ends a task for good and wakes whoever waits for it.
local function close(id, status, at, reason, dead)
  local key = 'task:' .. id
  local endpoint, owner, before, rank, incarnation, ttl, webhook = unpack(redis.call('HMGET', key,
    'endpoint_id', 'owner', 'status', 'rank', 'incarnation', 'result_ttl_seconds', 'webhook'))
  redis.call('HSET', key, 'status', status, 'finished_at', text(at))
  redis.call('HINCRBY', finished_key(endpoint), status, 1)
  local why = status == 'cancelled' and redis.call('HGET', key, 'cancel_requested')
  if why and why ~= '1' then
    redis.call('HSET', key, 'error', why)
  end
  redis.call('HDEL', key, 'not_before', 'holder', 'claim')
  redis.call('ZREM', 'open:' .. endpoint, id)
  redis.call('ZREM', waiting_key(endpoint, rank), id)
  redis.call('ZREM', 'due', id)
  redis.call('ZREM', 'deadlines', id)
  if incarnation then
    redis.call('SREM', 'running:' .. incarnation, id)
  end
  if redis.call('EXISTS', 'open:' .. endpoint) == 0 then
    redis.call('SREM', 'endpoints', endpoint)
  end
  redis.call('ZADD', 'retention', text(at + tonumber(ttl)), id)
  local sequence = relist(id, owner, before, status)
  if dead then
    redis.call('ZADD', 'dead:' .. endpoint, sequence, id)
  end
  if webhook then
    redis.call('HDEL', key, 'webhook_state')
    redis.call('ZADD', 'webhooks', text(at), id)
    redis.call('PUBLISH', 'webhooks', id)
  end
  event(id, status, at, reason)
  redis.call('PUBLISH', 'done', id)
  return status
end

-- Ends or requeues the attempt that a record is in; the caller has checked that it is `running`.
-- `charge` is 'full', 'none' (it never began) or 'spared' (it began, and what ended it was not its fault).
-- `delay` nil backs off by the number of attempts; `jitter` is a factor from 0.5 to 1.
local function requeue(id, at, charge, delay, jitter, reason, failure, report)
  local key = 'task:' .. id
  local endpoint, owner, priority, incarnation, attempt, most, cancel, wait, expires = unpack(redis.call('HMGET',
    key, 'endpoint_id', 'owner', 'priority', 'incarnation', 'attempt', 'max_attempts', 'cancel_requested',
    'wait_seconds', 'expires_at'))
  note_attempt(id, report)
  if cancel then
    return close(id, 'cancelled', at, reason, false)
  end
  if charge == 'full' and tonumber(attempt) >= tonumber(most) then
    redis.call('HSET', key, 'error', failure)
    return close(id, 'failed', at, reason, true)
  end
  if not delay then
    delay = math.min(BACKOFF_MOST_SECONDS, BACKOFF_FIRST_SECONDS * 2 ^ (tonumber(attempt) - 1)) * jitter
  end
  redis.call('SREM', 'running:' .. incarnation, id)
  redis.call('HDEL', key, 'incarnation', 'claim', 'started_at')
  relist(id, owner, 'running', 'queued')
  if charge == 'none' then
    redis.call('HINCRBY', key, 'attempt', -1)
  else
    -- Its time in the queue begins again: `expires_in_seconds` bounds waiting, not running.
    expires = text(at + delay + tonumber(wait))
    redis.call('HSET', key, 'expires_at', expires)
  end
  if charge == 'spared' then
    redis.call('HINCRBY', key, 'max_attempts', 1)
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

-- What is known of an attempt whose forwarder died.
local function lost_attempt(id, at)
  local attempt, started = unpack(redis.call('HMGET', 'task:' .. id, 'attempt', 'started_at'))
  return '{"attempt":' .. attempt .. ',"charge":"full","started_at":' .. started .. ',"ended_at":' .. text(at) ..
    ',"reason":"forwarder died","worker_id":null,"error":' .. LOST .. ',"log_tail":""}'
end

-- Requeues up to `limit` tasks of a dead incarnation and forgets it when none is left.
local function reclaim(incarnation, at, limit, jitter)
  local ids = redis.call('SRANDMEMBER', 'running:' .. incarnation, limit)
  for _, id in ipairs(ids) do
    if redis.call('HGET', 'task:' .. id, 'status') == 'running' then
      requeue(id, at, 'full', nil, jitter, 'forwarder died', LOST, lost_attempt(id, at))
    end
    redis.call('SREM', 'running:' .. incarnation, id)
  end
  if redis.call('EXISTS', 'running:' .. incarnation) == 0 then
    redis.call('SREM', 'incarnations', incarnation)
    redis.call('HDEL', 'load', incarnation)
  end
  return #ids
end

-- Takes an id out of the indexes by time whose record is gone, as on a Redis that evicts: no sweep may stop at it.
local function is_ghost(id)
  if redis.call('EXISTS', 'task:' .. id) == 1 then
    return false
  end
  for _, index in ipairs({ 'deadlines', 'due', 'retention', 'webhooks' }) do
    redis.call('ZREM', index, id)
  end
  return true
end

-- `why` is the error that the task is to show; nil where its owner cancels it, who knows why.
local function cancel(id, at, reason, why)
  local status, incarnation = unpack(redis.call('HMGET', 'task:' .. id, 'status', 'incarnation'))
  if not status then
    return 'gone'
  end
  if FINAL[status] then
    return 'final'
  end
  if why then
    redis.call('HSETNX', 'task:' .. id, 'cancel_requested', why)
  end
  if status == 'queued' or not alive(incarnation) then
    if status == 'running' then
      redis.call('PUBLISH', 'cancel', id) -- its holder may live: a lease also ends when Redis stands still
    end
    return close(id, 'cancelled', at, reason, false)
  end
  redis.call('HSETNX', 'task:' .. id, 'cancel_requested', '1')
  redis.call('PUBLISH', 'cancel', id)
  return 'requested'
end
