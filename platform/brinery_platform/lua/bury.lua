-- incarnation, batch, jitter -> tasks requeued. It is known to be dead: nobody waits for its lease.
redis.call('DEL', 'incarnation:' .. ARGV[1])
return reclaim(ARGV[1], now(), tonumber(ARGV[2]), tonumber(ARGV[3]))
