-- id, end of the lease, state or '', next try or '' for none -> {'kept' | 'done' | 'stale', next try of any or '', now}
-- Stale: the lease is over and another one has it, or the record is gone; then nothing changes.
local id, leased_until, state, next_at = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local score = redis.call('ZSCORE', 'webhooks', id)
local outcome = 'stale'
if score and tonumber(score) == tonumber(leased_until) then
  if state ~= '' then
    redis.call('HSET', 'task:' .. id, 'webhook_state', state)
  end
  if next_at ~= '' then
    redis.call('ZADD', 'webhooks', next_at, id)
    outcome = 'kept'
  else
    redis.call('ZREM', 'webhooks', id)
    outcome = 'done'
  end
end
return { outcome, redis.call('ZRANGE', 'webhooks', 0, 0, 'WITHSCORES')[2] or '', text(now()) }
