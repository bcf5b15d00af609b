-- id, incarnation, claim -> {'claimed', record} | {reason}
-- `claim` is random, one for each delivery: a call that is repeated because its reply was lost finds its own claim.
local id, incarnation, claim = ARGV[1], ARGV[2], ARGV[3]
local key = 'task:' .. id
if not alive(incarnation) or redis.call('SISMEMBER', 'incarnations', incarnation) == 0 then
  return { 'unregistered' }
end
local at = now()
local status, holder, mine, endpoint, owner, rank, not_before, expires, attempt, most, cancelled = unpack(redis.call(
  'HMGET', key, 'status', 'incarnation', 'claim', 'endpoint_id', 'owner', 'rank', 'not_before', 'expires_at',
  'attempt', 'max_attempts', 'cancel_requested'))
if not status then
  return { 'gone' }
end
if FINAL[status] then
  return { 'final' }
end
if status == 'running' then
  if mine == claim then
    return { 'claimed', redis.call('HGETALL', key) }
  end
  if alive(holder) then
    return { 'running' }
  end
  note_attempt(id, lost_attempt(id, at))
  if cancelled then
    close(id, 'cancelled', at, 'forwarder died', false)
    return { 'final' }
  end
  if tonumber(attempt) >= tonumber(most) then
    redis.call('HSET', key, 'error', LOST)
    close(id, 'failed', at, 'forwarder died', true)
    return { 'final' }
  end
  redis.call('SREM', 'running:' .. holder, id)
elseif not_before then
  return { 'delayed' }
elseif tonumber(expires) <= at then
  redis.call('HSET', key, 'error', EXPIRED)
  close(id, 'expired', at, 'expired in the queue', false)
  return { 'final' }
end
redis.call('HINCRBY', key, 'attempt', 1)
redis.call('HSET', key, 'status', 'running', 'incarnation', incarnation, 'claim', claim, 'started_at', text(at))
redis.call('HDEL', key, 'holder', 'sent_at', 'answered_at', 'stored_at')
if status == 'queued' then
  relist(id, owner, 'queued', 'running')
end
redis.call('ZREM', waiting_key(endpoint, rank), id)
redis.call('ZREM', 'deadlines', id)
redis.call('SADD', 'running:' .. incarnation, id)
event(id, 'running', at, 'claimed')
return { 'claimed', redis.call('HGETALL', key) }
