-- endpoint -> {open, queued and not delayed, when the oldest of these was queued or '', dead letters, {status, how many
-- tasks have ended with it since the endpoint was made, …}}
local endpoint = ARGV[1]
local queued, oldest = standing(endpoint)
return { redis.call('ZCARD', 'open:' .. endpoint), queued, oldest and text(oldest) or '',
  redis.call('ZCARD', 'dead:' .. endpoint), redis.call('HGETALL', finished_key(endpoint)) }
