-- id -> 'cancelled' | 'requested' | 'final' | 'gone'
return cancel(ARGV[1], now(), 'cancelled')
