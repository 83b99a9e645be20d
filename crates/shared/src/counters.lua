-- Decides on one request of every client in KEYS, and counts it for all of them or, when one window is full, for none.
--
-- ARGV[1] is the time in milliseconds, or empty for the clock of this Redis; then the limits of a minute and of an hour for
-- each key. Answers four numbers for each key: 0 admitted, 1 the minute is full, 2 the hour is full; milliseconds to wait;
-- what the minute still admits; milliseconds until the minute's window is over.
--
-- The same decisions as `interlock_model::rate`, which a test compares.
local MINUTE, HOUR = 60000, 3600000
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function renew(opened, count, length)
  if now < opened then return now, count end
  if now - opened >= length then return now, 0 end
  return opened, count
end

local clients, refused = {}, false
for i, key in ipairs(KEYS) do
  local c = { key = key, minute = tonumber(ARGV[2 * i]), hour = tonumber(ARGV[2 * i + 1]), why = 0, wait = 0 }
  local stored = redis.call('GET', key)
  local mo, mc, ho, hc = string.match(stored or '', '^(%d+) (%d+) (%d+) (%d+)$')
  c.mo, c.mc = renew(tonumber(mo) or now, tonumber(mc) or 0, MINUTE)
  c.ho, c.hc = renew(tonumber(ho) or now, tonumber(hc) or 0, HOUR)
  if c.hc >= c.hour then
    c.why, c.wait, refused = 2, c.ho + HOUR - now, true
  elseif c.mc >= c.minute then
    c.why, c.wait, refused = 1, c.mo + MINUTE - now, true
  end
  clients[i] = c
end

local answer = {}
for _, c in ipairs(clients) do
  if not refused then c.mc, c.hc = c.mc + 1, c.hc + 1 end
  redis.call('SET', c.key, string.format('%.0f %d %.0f %d', c.mo, c.mc, c.ho, c.hc), 'PX', HOUR)
  answer[#answer + 1] = c.why
  answer[#answer + 1] = c.wait
  answer[#answer + 1] = math.max(c.minute - c.mc, 0)
  answer[#answer + 1] = c.mo + MINUTE - now
end
return answer
