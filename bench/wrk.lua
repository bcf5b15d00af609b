-- Posts one body again and again, compares every answer with the expected bytes, and ends with one line of JSON.
-- BENCH_BODY, BENCH_EXPECTED and BENCH_AUTHORIZATION (may be empty) come as environment variables, so that
-- the key is on no command line.

local expected = os.getenv("BENCH_EXPECTED")
local authorization = os.getenv("BENCH_AUTHORIZATION")
local threads = {}

wrk.method = "POST"
wrk.body = os.getenv("BENCH_BODY")
wrk.headers["Content-Type"] = "application/json"
if authorization ~= "" then
  wrk.headers["Authorization"] = authorization
end

-- Globals of the load thread's own Lua state; `done` runs in another state and asks for them.
not_2xx = 0
wrong = 0
first_wrong = ""

function setup(thread)
  table.insert(threads, thread)
end

function response(status, _, body)
  if status < 200 or status > 299 then
    not_2xx = not_2xx + 1
  elseif body ~= expected then
    wrong = wrong + 1
  else
    return
  end
  if first_wrong == "" then
    first_wrong = status .. " " .. string.sub(body, 1, 200)
  end
end

function done(summary, latency, _)
  local bad_status, bad_answer, example = 0, 0, ""
  for _, thread in ipairs(threads) do
    bad_status = bad_status + thread:get("not_2xx")
    bad_answer = bad_answer + thread:get("wrong")
    if example == "" then
      example = thread:get("first_wrong")
    end
  end
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "duration_us": %d, "p50_us": %d, "p99_us": %d, "not_2xx": %d, "wrong": %d, '
      .. '"socket_errors": %d, "timeouts": %d, "example": "%s"}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), bad_status, bad_answer,
    errors.connect + errors.read + errors.write, errors.timeout,
    string.gsub(string.gsub(example, '[\\"]', "'"), "%c", " ")
  ))
end
