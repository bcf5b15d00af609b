-- endpoint -> {open, queued and not delayed, when the oldest of these was queued or ''}
local endpoint = ARGV[1]
local queued, oldest = standing(endpoint)
return { redis.call('ZCARD', 'open:' .. endpoint), queued, oldest and text(oldest) or '' }
