-- lease in seconds, batch, field... -> {now, end of the lease, next try or '', {values of the fields}...}
-- Takes webhooks whose time has come. Until the lease ends they are nobody else's; if they are not reported by then,
-- whoever asks next gets them. A record that is gone, or waits or runs again, has nothing to tell.
local lease, batch = tonumber(ARGV[1]), tonumber(ARGV[2])
local at = now()
local leased_until = text(at + lease)
local reply = { text(at), leased_until, '' }
for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'webhooks', '-inf', text(at), 'LIMIT', 0, batch)) do
  local key = 'task:' .. id
  local status, webhook = unpack(redis.call('HMGET', key, 'status', 'webhook'))
  if webhook and FINAL[status] then
    redis.call('ZADD', 'webhooks', leased_until, id)
    reply[#reply + 1] = redis.call('HMGET', key, unpack(ARGV, 3))
  else
    redis.call('ZREM', 'webhooks', id)
  end
end
reply[3] = redis.call('ZRANGE', 'webhooks', 0, 0, 'WITHSCORES')[2] or ''
return reply
