-- One channel and the places of its groups. Redis runs a script as a whole, so what an action looks at is still so
-- when it writes.
--
-- KEYS[1]: the base of the channel's keys. ARGV[1]: the action. ARGV[2], ARGV[3]: group and place, or empty.
--
--   base:0 ... base:15   streams: the channel, spread by the CRC-32 of the key; every group has a consumer group on each
--   base:clock           hash: `n` numbers the messages of the channel and its places, `ms` is the time of the last id
--   base:groups          set of the groups that exist
--   p = base:group:place
--   p:copies             stream: what was sent to this place alone; number 16 among the streams of the place
--   p:ready:STREAM       sorted set of ids, by number: was handed out before, or is a copy, and may be handed out now
--   p:due                sorted set of `STREAM|id`, by the time in ms before which it may not be handed out
--   p:returns, p:marks   hashes by `STREAM|id`
--   p:members            hash: member -> what it wrote at its last sign of life
--   p:slots              hash: stream -> the member that owns it (order="key")
--   p:order              the order of the living members
--
-- What is not settled is in the pending entries list of the consumer group: under the member's own name while it is handed
-- out, under the name `-` while it waits to be handed out again. A member's name is never used twice.

local SLOTS, COPIES, NOBODY = 16, 16, '-'

local base, group, place = KEYS[1], ARGV[2], ARGV[3]
local p = base .. ':' .. group .. ':' .. place
local clock, groups = base .. ':clock', base .. ':groups'

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function whole(number)
  return string.format('%.0f', number)
end

local function stream_of(slot)
  if slot == COPIES then
    return p .. ':copies'
  end
  return base .. ':' .. slot
end

local function number_of(id)
  return string.match(id, '-(%d+)$')
end

local function field_of(slot, id)
  return slot .. '|' .. id
end

local function ready_of(slot)
  return p .. ':ready:' .. slot
end

local function hash(key)
  local flat, found = redis.call('HGETALL', key), {}
  for i = 1, #flat, 2 do
    found[flat[i]] = flat[i + 1]
  end
  return found
end

-- The streams that an inlet or a dead place is made of.
local function streams()
  local all = {}
  if place == 'inlet' then
    for slot = 0, SLOTS - 1 do
      all[#all + 1] = slot
    end
  end
  all[#all + 1] = COPIES
  return all
end

local function wake(what)
  redis.call('PUBLISH', what .. ':wake', '')
end

local function is_member(member)
  return redis.call('HEXISTS', p .. ':members', member) == 1
end

-- Whether this arrival is still the member's.
local function is_out(member, slot, id, arrivals)
  local found = redis.call('XPENDING', stream_of(slot), group, id, id, 1, member)[1]
  return found ~= nil and found[4] == arrivals
end

local function forget(slot, id)
  local field = field_of(slot, id)
  redis.call('HDEL', p .. ':returns', field)
  redis.call('HDEL', p .. ':marks', field)
end

-- Take a message away from who has it; not before `due` it may be handed out again.
local function put_back(slot, id, due, polite)
  if #redis.call('XCLAIM', stream_of(slot), group, NOBODY, 0, id, 'JUSTID') == 0 then
    forget(slot, id) -- trimmed: it was older than everything is kept
    return
  end
  if polite then
    redis.call('HINCRBY', p .. ':returns', field_of(slot, id), 1)
  end
  if due then
    redis.call('ZADD', p .. ':due', whole(due), field_of(slot, id))
  else
    redis.call('ZADD', ready_of(slot), number_of(id), id)
  end
end

-- End a membership: what is out goes back, the slots become free.
local function dismiss(member, polite)
  for _, slot in ipairs(streams()) do
    local stream = stream_of(slot)
    while true do
      local out = redis.call('XPENDING', stream, group, '-', '+', 500, member)
      for _, pending in ipairs(out) do
        put_back(slot, pending[1], nil, polite)
      end
      if #out < 500 then
        break
      end
    end
    redis.call('XGROUP', 'DELCONSUMER', stream, group, member)
  end
  redis.call('HDEL', p .. ':members', member)
  for slot, owner in pairs(hash(p .. ':slots')) do
    if owner == member then
      redis.call('HDEL', p .. ':slots', slot)
    end
  end
  wake(p)
end

-- order="key": bring what a member owns nearer to its share, and return the slots that it may take from. A slot is given up
-- when nothing of it is out; until then nothing new is taken from it.
local function shares(member)
  local names = redis.call('HKEYS', p .. ':members')
  table.sort(names)
  local rank = 0
  for i, name in ipairs(names) do
    if name == member then
      rank = i
    end
  end
  local quota = math.floor(SLOTS / #names)
  if rank <= SLOTS % #names then
    quota = quota + 1
  end
  local owners, kept, released = hash(p .. ':slots'), {}, false
  for slot = 0, SLOTS - 1 do
    if owners[tostring(slot)] == member then
      if #kept < quota then
        kept[#kept + 1] = slot
      elseif #redis.call('XPENDING', stream_of(slot), group, '-', '+', 1, member) == 0 then
        redis.call('HDEL', p .. ':slots', slot)
        released = true
      end
    end
  end
  for slot = 0, SLOTS - 1 do
    if #kept < quota and not owners[tostring(slot)] then
      redis.call('HSET', p .. ':slots', slot, member)
      kept[#kept + 1] = slot
    end
  end
  if released then
    wake(p)
  end
  kept[#kept + 1] = COPIES
  return kept
end

local actions = {}

-- publish GROUP PLACE MUST_ROUTE KEEP_MS COUNT, and for each: SLOT AFTER_MS FIELDS field value ...
function actions.publish()
  if group == '' then
    if ARGV[4] == '1' and redis.call('SCARD', groups) == 0 then
      return 'unroutable'
    end
  elseif redis.call('SISMEMBER', groups, group) == 0 and redis.call('EXISTS', p .. ':copies') == 0 then
    return 'missing'
  end
  local time = now()
  local ms = math.max(time, tonumber(redis.call('HGET', clock, 'ms') or 0))
  redis.call('HSET', clock, 'ms', whole(ms))
  local oldest, at = whole(math.max(0, time - ARGV[5])), 7
  for _ = 1, ARGV[6] do
    local slot, after, size = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    local n = redis.call('HINCRBY', clock, 'n', 1)
    local id = whole(ms) .. '-' .. whole(n)
    local first, last = at + 3, at + 2 + size
    if group == '' then
      redis.call('XADD', base .. ':' .. slot, 'MINID', '~', oldest, id, unpack(ARGV, first, last))
    else
      redis.call('XADD', p .. ':copies', id, unpack(ARGV, first, last))
      if after > 0 then -- the clock was cut to a whole ms above: one more, so that nothing is early
        redis.call('ZADD', p .. ':due', whole(time + after + 1), field_of(COPIES, id))
      else
        redis.call('ZADD', ready_of(COPIES), n, id)
      end
    end
    at = last + 1
  end
  wake(group == '' and base or p)
  return 'ok'
end

-- join GROUP PLACE START ORDER MEMBER SIGN: the members if their order is another one, else nothing.
function actions.join()
  local start, order, member, sign = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
  if redis.call('HLEN', p .. ':members') > 0 and redis.call('GET', p .. ':order') ~= order then
    return redis.call('HGETALL', p .. ':members')
  end
  local from = '0'
  if place == 'inlet' and redis.call('SADD', groups, group) == 1 and start == 'latest' then
    from = '$'
  end
  for _, slot in ipairs(streams()) do
    local made = redis.pcall('XGROUP', 'CREATE', stream_of(slot), group, slot == COPIES and '0' or from, 'MKSTREAM')
    if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then
      return made
    end
  end
  redis.call('SET', p .. ':order', order)
  redis.call('HSET', p .. ':members', member, sign)
  wake(p)
  return {}
end

-- claim GROUP PLACE MEMBER ORDER LIMIT BYTES FROM: ms until the next is due, and for each message: stream, id, arrivals,
-- returns, mark, fields.
function actions.claim()
  local member, order = ARGV[4], ARGV[5]
  if not is_member(member) then
    return 'gone'
  end
  local limit, room, from = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
  local time = now()
  for _, field in ipairs(redis.call('ZRANGEBYSCORE', p .. ':due', '-inf', whole(time), 'LIMIT', 0, 500)) do
    local slot, id = string.match(field, '^(%d+)|(.+)$')
    redis.call('ZREM', p .. ':due', field)
    redis.call('ZADD', ready_of(slot), number_of(id), id)
  end
  local found, mine = {}, order == 'key' and shares(member) or streams()
  local function add(slot, entry, arrivals, returns, mark)
    found[#found + 1] = {slot, entry[1], arrivals, returns, mark, entry[2]}
    for i = 2, #entry[2], 2 do
      room = room - #entry[2][i]
    end
  end
  for turn = 1, #mine do -- what has been handed out before is older than what is new
    local slot = mine[(turn + from) % #mine + 1]
    local stream = stream_of(slot)
    while #found < limit and room > 0 do
      local id = redis.call('ZRANGE', ready_of(slot), 0, 0)[1]
      if not id then
        break
      end
      redis.call('ZREM', ready_of(slot), id)
      local pending, field = redis.call('XPENDING', stream, group, id, id, 1)[1], field_of(slot, id)
      local arrivals = (pending and pending[4] or 0) + 1
      local entry = redis.call('XCLAIM', stream, group, member, 0, id, 'RETRYCOUNT', arrivals, 'FORCE')[1]
      if entry then
        local returns = tonumber(redis.call('HGET', p .. ':returns', field) or 0)
        add(slot, entry, arrivals, returns, redis.call('HGET', p .. ':marks', field))
      else
        forget(slot, id)
      end
    end
  end
  for turn = 1, #mine do
    local slot = mine[(turn + from) % #mine + 1]
    local ahead = order == 'key' and redis.call('ZCARD', ready_of(slot)) > 0
    while slot ~= COPIES and not ahead and #found < limit and room > 0 do
      local count = math.min(limit - #found, 16)
      local read =
        redis.call('XREADGROUP', 'GROUP', group, member, 'COUNT', count, 'STREAMS', stream_of(slot), '>')
      local entries = read and read[1][2] or {}
      for _, entry in ipairs(entries) do
        add(slot, entry, 1, 0, false)
      end
      if #entries < count then
        break
      end
    end
  end
  local next_due, wait = redis.call('ZRANGE', p .. ':due', 0, 0, 'WITHSCORES')[2], -1
  if next_due then
    wait = math.max(0, next_due - time)
  end
  return {wait, found}
end

-- settle GROUP PLACE MEMBER, and for each: KIND STREAM ID ARRIVALS AFTER_MS. 1 for each that was ours, else 0.
function actions.settle()
  local member, outcomes, returned, time = ARGV[4], {}, false, now()
  local known = is_member(member)
  for at = 5, #ARGV, 5 do
    local kind, slot, id, arrivals, after =
      ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2], tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
    if not (known and is_out(member, slot, id, arrivals)) then
      outcomes[#outcomes + 1] = 0
    else
      outcomes[#outcomes + 1] = 1
      if kind == 'retry' then
        put_back(slot, id, after > 0 and time + after + 1 or nil, true)
        returned = true
      else
        redis.call('XACK', stream_of(slot), group, id)
        forget(slot, id)
        if slot == COPIES then
          redis.call('XDEL', stream_of(slot), id)
        end
      end
    end
  end
  if returned then
    wake(p)
  end
  return outcomes
end

-- mark GROUP PLACE MEMBER, and for each: STREAM ID ARRIVALS WRITE VALUE. 1 for each that was ours, else 0.
function actions.mark()
  local member, outcomes = ARGV[4], {}
  local known = is_member(member)
  for at = 5, #ARGV, 5 do
    local slot, id, arrivals = tonumber(ARGV[at]), ARGV[at + 1], tonumber(ARGV[at + 2])
    if not (known and is_out(member, slot, id, arrivals)) then
      outcomes[#outcomes + 1] = 0
    else
      outcomes[#outcomes + 1] = 1
      if ARGV[at + 3] == '1' then
        redis.call('HSET', p .. ':marks', field_of(slot, id), ARGV[at + 4])
      else
        redis.call('HDEL', p .. ':marks', field_of(slot, id))
      end
    end
  end
  return outcomes
end

-- held GROUP PLACE MEMBER: stream, id and arrivals of everything that is out.
function actions.held()
  local member, found = ARGV[4], {}
  if not is_member(member) then
    return 'gone'
  end
  for _, slot in ipairs(streams()) do
    local from = '-'
    while true do
      local out = redis.call('XPENDING', stream_of(slot), group, from, '+', 500, member)
      for _, pending in ipairs(out) do
        found[#found + 1] = {slot, pending[1], pending[4]}
        from = '(' .. pending[1]
      end
      if #out < 500 then
        break
      end
    end
  end
  return found
end

-- beat GROUP PLACE MEMBER SIGN ORDER: the members and their signs.
function actions.beat()
  local member = ARGV[4]
  if not is_member(member) then
    return 'gone'
  end
  redis.call('HSET', p .. ':members', member, ARGV[5])
  if ARGV[6] == 'key' then
    shares(member)
  end
  return redis.call('HGETALL', p .. ':members')
end

-- evict GROUP PLACE MEMBER SIGN: dismiss a member that has given no sign of life since this one.
function actions.evict()
  if redis.call('HGET', p .. ':members', ARGV[4]) ~= ARGV[5] then
    return 0
  end
  dismiss(ARGV[4], false)
  return 1
end

-- leave GROUP PLACE MEMBER
function actions.leave()
  if not is_member(ARGV[4]) then
    return 0
  end
  dismiss(ARGV[4], true)
  return 1
end

-- measure GROUP PLACE: waiting, delayed, in flight, age of the oldest in ms or -1.
function actions.measure()
  if place == 'inlet' and redis.call('SISMEMBER', groups, group) == 0 then
    return 'missing'
  end
  local time, oldest = now(), nil
  local delayed = redis.call('ZCOUNT', p .. ':due', '(' .. whole(time), '+inf')
  local waiting, out = redis.call('ZCARD', p .. ':due') - delayed, 0
  local function older(id)
    local ms = tonumber(string.match(id, '^(%d+)-'))
    oldest = math.min(oldest or ms, ms)
  end
  for _, slot in ipairs(streams()) do
    local stream = stream_of(slot)
    waiting = waiting + redis.call('ZCARD', ready_of(slot))
    local pending = redis.pcall('XPENDING', stream, group)
    if not pending.err and pending[1] > 0 then
      out = out + pending[1]
      for _, consumer in ipairs(pending[4]) do
        if consumer[1] == NOBODY then
          out = out - consumer[2]
        end
      end
      older(pending[2])
    end
    if slot == COPIES then
      local entry = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
      if entry then
        older(entry[1])
      end
    else
      local from = '-'
      for _, row in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
        if row[2] == group then
          from = '(' .. row[8]
        end
      end
      local first = redis.call('XRANGE', stream, from, '+', 'COUNT', 1)[1]
      if first then
        older(first[1])
        while true do -- not the group's `lag`, which Redis does not always know
          local entries = redis.call('XRANGE', stream, from, '+', 'COUNT', 100)
          waiting = waiting + #entries
          if #entries < 100 then
            break
          end
          from = '(' .. entries[100][1]
        end
      end
    end
  end
  return {waiting, delayed, out, oldest and math.max(0, time - oldest) or -1}
end

-- browse GROUP PLACE AFTER LIMIT: id and fields, oldest first. browse GROUP PLACE end: the last id.
function actions.browse()
  local after, limit = ARGV[4], tonumber(ARGV[5])
  if after == 'end' then
    local last = hash(clock)
    return (last.ms or '0') .. '-' .. (last.n or '0')
  end
  local found = {}
  for slot = (group == '' and 0 or COPIES), (group == '' and SLOTS - 1 or COPIES) do
    for _, entry in ipairs(redis.call('XRANGE', stream_of(slot), '(' .. after, '+', 'COUNT', limit)) do
      found[#found + 1] = entry
    end
  end
  table.sort(found, function(one, other)
    return tonumber(number_of(one[1])) < tonumber(number_of(other[1]))
  end)
  for i = #found, limit + 1, -1 do
    found[i] = nil
  end
  return found
end

return actions[ARGV[1]]()
