// The browser page of a device server: sign in, see the device, fill in a form, follow a run, stop.
//
// Three rules hold in the whole file. Text reaches the page through text nodes only, so that whatever the server says stays
// text. The token lives in one variable and is never stored. Nothing looks current that the server did not just confirm.

// ---- elements

const $ = (id) => document.getElementById(id);

/** Shows control characters and direction marks: a log line must not disguise what stands beside it. */
const visible = (value) =>
	String(value).replace(/[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, (c) =>
		c < ' ' ? String.fromCharCode(0x2400 + c.charCodeAt(0)) : '\ufffd');
const { entries } = Object;
const { stringify } = JSON;
const isGiven = (value) => (value ?? false) !== false;

const fill = (element, ...children) => {
	element.replaceChildren(...children.flat(9).filter(isGiven).map((child) => (child instanceof Node ? child : visible(child))));
	return element;
};

/** An element: `tag.class`, then children. */
function h(kind, ...children) {
	const [tag, ...classes] = kind.split('.');
	const element = document.createElement(tag);
	element.className = classes.join(' ');
	return fill(element, ...children);
}

/** Attributes; `on…` adds a listener. Apart from children, so that an object from the server never becomes attributes. */
function set(element, attributes) {
	for (const [name, value] of entries(attributes)) {
		if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
		else if (isGiven(value)) element.setAttribute(name, value === true ? '' : visible(value));
	}
	return element;
}
const button = (text, onclick, attributes) => set(h('button', text), { type: 'button', onclick, ...attributes });
const on = (id, event, act) => $(id).addEventListener(event, act);
const say = (text) => fill($('said'), text);
const pill = (state, words = state.replace('_', ' ')) => h(`span.pill.${state}`, words);
const own = (object, key) => (object && Object.hasOwn(object, key) ? object[key] : undefined);
const json = (value) => stringify(value, null, 1);
const attempt = (work) => {
	try {
		return work();
	} catch {
		return undefined;
	}
};
const sleep = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));

/** A time in the viewer's zone, today's without the date. */
function clock(text) {
	const at = new Date(text ?? NaN);
	if (isNaN(at)) return '–';
	const words = at.toLocaleString('sv'); // 2026-01-31 12:00:00
	return set(h('time', at.toDateString() === new Date().toDateString() ? words.slice(11) : words), { title: text });
}

function span(seconds) {
	if (isNaN(seconds ?? NaN)) return '';
	if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
	return seconds < 60 ? `${seconds.toFixed(1)} s` : `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
}

/** How people write a UCUM code. */
const SYMBOLS = { Cel: '°C', '[degF]': '°F', '[g]': '×g', deg: '°', 1: '' };
const symbol = (unit) =>
	own(SYMBOLS, unit) ?? (unit ?? '').replace(/[[\]]/g, '').replace('Ohm', 'Ω').replace(/^u(?=[A-Za-z])/, 'µ').replace(/2$/, '²').replace(/3$/, '³');

/** Copies what is seen: no hidden character gets into a terminal. */
const copyButton = (source) =>
	button('Copy', ({ currentTarget: pressed }) => {
		getSelection().selectAllChildren(source);
		document.execCommand('copy'); // navigator.clipboard does not exist over plain HTTP
		fill(pressed, 'Copied');
		setTimeout(() => fill(pressed, 'Copy'), 1500);
	}, { class: 'copy' });

/** Scrolls, so that the keyboard must reach it. */
const block = (text) => set(h('pre', text), { tabindex: 0 });

/** A `details` whose content is made when it is first opened. */
function folded(kind, summary, build, open) {
	const box = set(h(kind, h('summary', summary)), { open });
	const once = () => box.open && box.children.length === 1 && box.append(build());
	box.addEventListener('toggle', once);
	once();
	return box;
}

// ---- server

let token = null;
let me = null;

/** A refusal or failure. `status` 0: no answer, so nobody knows whether the request arrived. */
class Problem extends Error {
	constructor(status, body, headers) {
		super(typeof body?.detail === 'string' ? body.detail : status ? `The server answered with status ${status}.` : 'No answer from the server.');
		Object.assign(this, { status, errors: body?.errors, code: body?.code, more: [], wait: Number(headers?.get('retry-after')) || 0,
			request: headers?.get('x-request-id') });
	}
}
const explain = ({ message, more = [], wait, code, request: id }) =>
	h('div.problem', [message, ...more, wait > 0 && `Try again in ${span(wait)}.`].map((text) => text && h('p', text)),
		h('small', [code, id && `request ${id}`].filter(Boolean).join(' · ')));

/** Shows a failure in the place of the result. */
const into = (place, work) => work().catch((problem) => fill(place, explain(problem)));

/** Gives the response or throws a Problem. `seconds` limits the wait for the head of the answer. */
async function request(method, path, { body, headers, signal, seconds = 20, keepalive } = {}) {
	const control = new AbortController();
	const timeout = setTimeout(() => control.abort(), seconds * 1000);
	signal?.addEventListener('abort', () => control.abort());
	const used = token;
	const sent = { ...headers, ...(used && { Authorization: `Bearer ${used}` }), ...(body && { 'Content-Type': 'application/json' }) };
	const response = await fetch(path, { method, headers: sent, body: body && stringify(body), signal: control.signal, keepalive,
		credentials: 'omit', cache: 'no-store', redirect: 'error' }).catch(() => Promise.reject(new Problem(0)));
	clearTimeout(timeout);
	if (response.ok) return response;
	if (response.status === 401 && used && used === token) endSession('Your session has ended. What you typed is still here.');
	throw new Problem(response.status, await response.json().catch(() => null), response.headers);
}
const call = async (...given) => (await request(...given)).json().catch(() => Promise.reject(new Problem(0)));

/** A path segment. Dots alone would climb to another path. */
const segment = (text) => encodeURIComponent(/^\.+$/.test(text) ? '-' : text);

// ---- session

on('sign-in-form', 'submit', async (event) => {
	event.preventDefault();
	const [name, password, otp] = [$('username'), $('password'), $('otp')];
	const empty = [name, password].find((input) => !input.value);
	try {
		if (empty) throw new Problem(0, { detail: `Enter your ${empty === name ? 'name' : 'password'}.` });
		const answer = await call('POST', '/auth/login', { body: { username: name.value, password: password.value, refresh: false, ...(otp.value && { otp: otp.value }) } });
		password.value = '';
		otp.value = '';
		$('otp-row').hidden = true;
		await enter(answer);
	} catch (problem) {
		const asked = problem.code === 'second_factor_required';
		if (asked) $('otp-row').hidden = false;
		else if (problem.status === 401) problem.message = 'Name or password is wrong.';
		fill($('sign-in-error'), explain(problem));
		(empty ?? (asked ? otp : password)).focus();
	}
});

/** Begins a session with what a sign-in has answered. */
async function enter(answer) {
	if (me?.user !== answer.user) forget();
	stopping = null;
	token = answer.access_token;
	me = answer;
	fill($('sign-in-error'));
	fill($('user'), me.user);
	$('user').title = `Roles: ${me.roles.join(', ')}`;
	$('sign-in').hidden = true;
	$('top').hidden = false;
	route();
	await refresh();
	$('main').focus({ preventScroll: true });
	await showNotices();
}

/** What the person should know about the account: unusual sign-ins, changed credentials. */
async function showNotices() {
	// Sessions that are limited are told nothing; that is no error.
	const fresh = (await call('GET', '/auth/notices').catch(() => [])).filter((one) => !one.read);
	$('notices').hidden = !fresh.length;
	fill($('notice-list'), ...fresh.map((one) => h('li', `${clock(one.at)} ${one.text}`)));
	$('notices-seen').value = fresh[0]?.at ?? '';
}

on('notices-seen', 'click', async () => {
	await call('POST', '/auth/notices/read', { body: { until: $('notices-seen').value } });
	$('notices').hidden = true;
	fill($('notice-list'));
});

/** Whoever signed in at the provider comes back with a text that fetches the token once; it leaves the address at once. */
async function arrive() {
	const [, code, refused] = location.hash.match(/^#sign-in(?:=([0-9a-f]{64})|(-refused))$/) ?? [];
	if (code || refused) history.replaceState(null, '', location.pathname);
	if (refused) throw new Problem(401, { detail: 'Your organisation did not let you in here. Ask who looks after this server.' });
	if (code) return enter(await call('POST', '/auth/oidc/exchange', { body: { code } }));
	const methods = await call('GET', '/auth/methods');
	$('elsewhere').hidden = !methods.oidc;
	$('by-passkey').hidden = $('add-passkey').hidden = !(methods.passkey && window.PublicKeyCredential?.parseCreationOptionsFromJSON);
}

// ---- passkeys

/** Asks the device, and gives its answer in the form that the server takes. A person who says no is no error. */
async function ask(begun, how) {
	try {
		const found = how === 'create'
			? await navigator.credentials.create({ publicKey: PublicKeyCredential.parseCreationOptionsFromJSON(begun.options) })
			: await navigator.credentials.get({ publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(begun.options) });
		return { state: begun.state, credential: found.toJSON() };
	} catch (problem) {
		if (problem.name === 'InvalidStateError') throw new Problem(0, { detail: 'This device holds a passkey of yours already.' });
		throw new Problem(0, { detail: 'No passkey was used. Try again, or sign in another way.' });
	}
}

on('passkey', 'click', async () => {
	try {
		const body = await ask(await call('POST', '/auth/passkeys/begin', { body: {} }), 'get');
		await enter(await call('POST', '/auth/passkeys/sign-in', { body }));
	} catch (problem) {
		if (problem.status === 401) problem.message = 'This passkey is not known here.';
		fill($('sign-in-error'), explain(problem));
	}
});

on('add-passkey', 'click', async () => {
	fill($('recovery-codes'));
	try {
		const body = await ask(await call('POST', '/auth/factors/passkeys', { body: { name: 'passkey of ' + new Date().toISOString().slice(0, 10) } }), 'create');
		const { recovery_codes: codes } = await call('POST', '/auth/factors/passkeys/confirm', { body });
		fill($('new-passkey-line'), codes.length
			? 'The passkey is yours. Each of these codes stands in for it once, if the device is lost; write them down, they are shown only now:'
			: 'The passkey is yours.');
		fill($('recovery-codes'), codes.map((code) => h('li', code)));
	} catch (problem) {
		if (problem.code === 'step_up_required') problem.message = 'Sign out and in again first: to add a passkey, prove anew who you are.';
		fill($('new-passkey-line'), explain(problem));
	}
	$('new-passkey').hidden = false;
});
on('new-passkey-seen', 'click', () => {
	fill($('recovery-codes'));
	$('new-passkey').hidden = true;
});

/** Without a token nothing can be read or stopped. The page keeps what it shows, marked as old. */
function endSession(why) {
	token = null;
	closeRun();
	showLive();
	fill($('sign-in-why'), why);
	fill($('user'), 'signed out');
	$('sign-in').hidden = false;
	$('username').focus();
}

function forget() {
	catalogue = device = fresh = stopping = null;
	for (const id of ['device', 'action-list', 'run-list', 'operations']) fill($(id));
	for (const id of ['top', 'control', 'reference', 'stopped', 'attention', 'run']) $(id).hidden = true;
	document.title = 'Interlock';
}

const signOut = (options) => token && request('POST', '/auth/logout', options).catch(() => null);
on('sign-out', 'click', async () => {
	const ended = signOut();
	endSession('You are signed out.');
	me = null;
	forget();
	// Whoever came from a provider signs out there too, unless somebody has signed in here meanwhile.
	const { details } = await (await ended)?.json().catch(() => null) ?? {};
	if (details?.provider_logout_url && !token) location.assign(details.provider_logout_url);
});
// A closed tab has lost its token; revoking it leaves none behind that still works.
addEventListener('pagehide', (event) => event.persisted || signOut({ keepalive: true }));

// ---- device

const POLL_SECONDS = 5; // 12 requests a minute of the 60 that a principal has
let device = null;
let fresh = null; // when the server last told us
let failing = null;
let timer = 0;
let acts = 0; // counts stops and releases: an older answer must not undo what was done meanwhile

async function refresh() {
	clearTimeout(timer);
	if (!token || document.hidden) return showLive();
	const [before, was] = [acts, device];
	try {
		const answer = await call('GET', '/device');
		if (!token) return;
		failing = null;
		if (before === acts) {
			device = answer;
			fresh = new Date().toISOString();
			showDevice();
			if (was?.running !== device.running) loadRuns();
			// A new worker may have other actions.
			if (!catalogue || was?.worker?.started_at !== device.worker.started_at) loadActions();
		}
	} catch (problem) {
		failing = problem;
	}
	showLive();
	clearTimeout(timer);
	timer = setTimeout(refresh, Math.max(POLL_SECONDS, failing?.wait ?? 0) * 1000);
}
document.addEventListener('visibilitychange', refresh);

function showLive() {
	const late = Boolean(!token || failing || document.hidden);
	document.body.classList.toggle('late', late);
	fill($('live'), late ? ['stale since ', clock(fresh), failing && `: ${failing.message}`] : 'live');
}

const runAddress = (id) => `#run/${encodeURIComponent(id)}`;
const runLink = (id) => set(h('a', id), { href: runAddress(id) });

function showDevice() {
	const { title, worker, attention, emergency_stop: { engaged } } = device;
	fill($('title'), title);
	fill($('state'), pill(device.state));
	fill($('running'), device.running && ['running ', runLink(device.running)]);
	const facts = { Waiting: device.queued, Worker: worker.pid ? `${worker.language ?? ''} pid ${worker.pid}` : 'none',
		'Worker since': clock(worker.started_at),
		Restarts: worker.restarts, 'Safe-state standby': worker.standby ? pill('ready') : pill('wait', 'not ready') };
	fill($('device'), entries(facts).map(([name, value]) => h('div', h('dt', name), h('dd', value))));
	$('attention').hidden = !attention;
	tellOnce($('attention-line'), attention && ['◆ Needs attention since ', clock(attention.since), `: ${attention.reason}`]);
	// A confirmed stop was released, or one without answer has worked: the device's own words count.
	if (stopping?.phase === (engaged ? 'failed' : 'confirmed')) stopping = null;
	showStop();
	document.title = `${engaged ? '■ STOPPED · ' : device.running ? '▶ ' : ''}${visible(title)}`;
	$('icon').href = $('icon').href.replace(/%23\w+/, engaged ? '%23b8001f' : '%230b5fa5');
}

/** Changes a text only if it differs: it is read aloud. */
function tellOnce(place, words) {
	if (place.textContent !== h('p', words).textContent) fill(place, words);
}

// ---- stop

/** A stop that was pressed here: `{phase, text, facts}`. Its numbers come from the server's answer only. */
let stopping = null;
const MACHINE = 'Use the stop on the machine itself.';

function showStop() {
	const { engaged, since, by, reason } = device?.emergency_stop ?? {};
	$('stopped').hidden = !engaged && !stopping;
	$('release').hidden = !engaged;
	tellOnce($('stop-line'), stopping?.text ?? ['■ STOPPED since ', clock(since), by && ` by ${by}`, reason && `: ${reason}`]);
	fill($('stop-facts'), stopping?.facts?.map((text) => h('li', text)));
}

const stopFact = ({ name, confirmed, killed_ms: killed, safe_state: safe, safe_state_done_ms: done, error }) =>
	`${name}: ${confirmed ? 'confirmed' : 'NOT CONFIRMED'}, worker dead: ${killed === null ? 'NOT KNOWN' : span(killed / 1000)}, `
	+ `safe state: ${safe} ${isGiven(done) ? span(done / 1000) : ''} ${error ?? ''}`;

async function stop() {
	const press = ++acts;
	const tell = (phase, text, facts) => {
		if (press !== acts) return; // a newer press has the word
		stopping = { phase, text, facts };
		showStop();
	};
	/** No answer: the same again for a short while. It does no harm if the first one has arrived. */
	const send = (tries) => call('POST', '/stop', { body: { reason: 'pressed in the browser' }, seconds: 120 })
		.catch((problem) => (problem.status || !tries ? Promise.reject(problem) : sleep(1).then(() => send(tries - 1))));
	if (!token) return tell('failed', `The stop was NOT sent: you are not signed in. ${MACHINE}`);
	tell('pending', 'Stopping … no confirmation yet');
	const late = setTimeout(() => tell('pending', `Stopping … still no answer. ${MACHINE}`), 3000);
	try {
		const { confirmed, of, devices, engaged_at: since, reason } = await send(3);
		const missing = confirmed < of ? `. ${of - confirmed} NOT CONFIRMED. ${MACHINE}` : '';
		tell('confirmed', `■ STOPPED: ${confirmed} of ${of} confirmed${missing}`, devices.map(stopFact));
		acts++;
		device = { ...device, emergency_stop: { engaged: true, since, by: me?.user, reason } };
		showStop();
		refresh();
	} catch (problem) {
		tell('failed', `The stop is NOT CONFIRMED: ${problem.message} ${MACHINE}`);
	}
	clearTimeout(late);
}
on('stop', 'click', stop);

function reasonForm(form, path) {
	const [input, errors] = [form.querySelector('input'), form.querySelector('div')];
	form.addEventListener('submit', async (event) => {
		event.preventDefault();
		try {
			if (!input.value.trim()) throw new Problem(0, { detail: 'Give a reason: it goes into the audit trail.' });
			const { message } = await call('POST', path, { body: { reason: input.value } });
			acts++;
			input.value = '';
			fill(errors);
			say(message);
			$('main').focus({ preventScroll: true });
			refresh();
		} catch (problem) {
			fill(errors, explain(problem));
			input.focus();
		}
	});
}
reasonForm($('release'), '/stop/release');
reasonForm($('clear'), '/device/attention/clear');

// ---- limits

const kindOf = (value) => (value === null ? 'null' : Array.isArray(value) ? 'array' : typeof value);
const fits = (type, value) => type === kindOf(value) || (type === 'integer' && Number.isInteger(value));
const WORDS = { null: 'null', boolean: 'true or false', integer: 'a whole number', number: 'a number',
	string: 'text', array: 'a list', object: 'an object' };
const FORMATS = { date: '2026-01-31', 'date-time': '2026-01-31T12:00:00Z', duration: 'PT1H30M' };
const SIGNS = { '<=': (a, b) => a <= b, '<': (a, b) => a < b, '>=': (a, b) => a >= b, '>': (a, b) => a > b };
/** Keyword, the type it is for, what it counts, how, in words. */
const LIMITS = [['imum', 'number', ''], ['Length', 'string', 'characters'], ['Items', 'array', 'items']]
	.flatMap(([end, ...what]) => [[`min${end}`, ...what, '>=', 'at least'], [`max${end}`, ...what, '<=', 'at most']]);
const typesOf = (schema) => [schema.type ?? []].flat();
const typeWords = (types) => [...new Set(types)].map((type) => WORDS[type]).join(' or ');
const short = (values) => values.slice(0, 12).map((one) => (typeof one === 'string' ? one : json(one))).join(', ') + (values.length > 12 ? ' …' : '');

function same(a, b) {
	if (a === b || kindOf(a) !== kindOf(b) || a === null || typeof a !== 'object') return a === b;
	const keys = Object.keys(a);
	return keys.length === Object.keys(b).length && keys.every((key) => Object.hasOwn(b, key) && same(a[key], b[key]));
}

/**
 * What is wrong with a value, in words. What it does not know (formats, members of objects) passes, because the server
 * checks again. It refuses no value that tests/schema_vectors.json allows.
 */
export function check(schema, value, unit = '', path = '') {
	const types = typesOf(schema);
	if (types.length && !types.some((type) => fits(type, value))) return [`${path}must be ${typeWords(types)}`];
	if (schema.enum && !schema.enum.some((choice) => same(choice, value))) return [`${path}must be one of ${short(schema.enum)}`];
	const measured = /string|array/.test(kindOf(value)) ? [...value].length : value;
	const found = LIMITS.filter(([keyword, type, , sign]) => keyword in schema && fits(type, value) && !SIGNS[sign](measured, schema[keyword]))
		.map(([keyword, , counts, , words]) => `${path}must ${counts ? 'have' : 'be'} ${words} ${schema[keyword]} ${counts || unit}`.trim());
	if (fits('number', value) && schema.multipleOf) {
		const steps = (value - (schema.minimum ?? 0)) / schema.multipleOf;
		if (Math.abs(steps - Math.round(steps)) > 1e-9) found.push(`${path}must be in steps of ${schema.multipleOf} ${unit} from ${schema.minimum ?? 0}`);
	}
	if (fits('array', value) && schema.items) value.forEach((item, i) => found.push(...check(schema.items, item, unit, `${path}item ${i + 1} `)));
	if (schema.anyOf?.every((branch) => check(branch, value).length))
		found.push(`${path}must be ${typeWords(schema.anyOf.flatMap(typesOf))} within the limits`);
	return found;
}

/** The limits as a person reads them before typing. */
function limits(schema, unit) {
	const { minimum, maximum, multipleOf, format } = schema;
	const both = isGiven(minimum) && isGiven(maximum);
	return [both && `${minimum} to ${maximum} ${unit}`,
		...LIMITS.map(([keyword, , counts, , words]) => keyword in schema && !(both && /^m..imum/.test(keyword)) && `${words} ${schema[keyword]} ${counts || unit}`),
		multipleOf && `in steps of ${multipleOf} ${unit}`, format && `such as ${own(FORMATS, format) ?? format}`,
	].filter(Boolean).map((text) => text.trim()).join(', ');
}

// ---- rules

const fail = () => { throw new Error('rule'); };
const numeric = (v) => (Number.isFinite(v) ? v : fail());
const truth = (v) => (typeof v === 'boolean' ? v : fail());
/** Text in an order by code point, as the server has it: the halves of a surrogate pair come after all others. */
const orderable = (v) => (typeof v === 'string' ? v.replace(/[\ud800-\udfff]/g, '\uffff$&') : numeric(v));
const isIn = (a, b) => (typeof a === 'string' && typeof b === 'string' ? b.includes(a) : Array.isArray(b) ? b.some((item) => same(a, item)) : fail());
const compare = (holds) => (a, b, v) => holds(a(v), b(v));
const compute = (operate) => (a, b, v) => numeric(operate(numeric(a(v)), numeric(b(v))));
const ordered = ([sign, holds]) => [sign, compare((a, b) => (typeof a === typeof b ? holds(orderable(a), orderable(b)) : fail()))];
/** By binding strength. `and` and `or` do not look at the right side when the left one decides. */
const OPERATORS = [
	{ or: (a, b, v) => truth(a(v)) || truth(b(v)) },
	{ and: (a, b, v) => truth(a(v)) && truth(b(v)) },
	{ ...Object.fromEntries(entries(SIGNS).map(ordered)), '==': compare(same), '!=': compare((a, b) => !same(a, b)),
		in: compare(isIn), 'not in': compare((a, b) => !isIn(a, b)) },
	{ '+': compute((a, b) => a + b), '-': compute((a, b) => a - b) },
	{ '*': compute((a, b) => a * b), '/': compute((a, b) => a / b) },
];
const extreme = (choose) => (...given) => {
	const numbers = given.length === 1 && Array.isArray(given[0]) ? given[0] : given;
	return numbers.length ? choose(...numbers.map(numeric)) : fail();
};
const FUNCTIONS = {
	abs: (v) => Math.abs(numeric(v)), min: extreme(Math.min), max: extreme(Math.max),
	len: (v) => (typeof v === 'string' ? [...v] : v && typeof v === 'object' ? Object.keys(v) : fail()).length,
};
const CONSTANTS = { true: true, True: true, false: false, False: false, null: null, None: null };

/** Compiles a rule (grammar: docs/reference/worker-protocol.md) to a function of the values. tests/rules.json holds for it. */
export function compileRule(text, names) {
	const pattern = /[ \t\r\n]+|(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|("[^"]*"|'[^']*')|(not[ \t\r\n]+in(?!\w)|<=|>=|==|!=|[-+*/<>()[\],])|([A-Za-z_]\w*)/y;
	const tokens = [];
	if ([...text].length > 500) fail();
	while (pattern.lastIndex < text.length) {
		const [, number, string, sign, name] = pattern.exec(text) ?? fail();
		if (number) tokens.push({ value: numeric(Number(number)) });
		else if (string) tokens.push({ value: string.slice(1, -1) });
		else if (sign || /^(and|or|not|in)$/.test(name)) tokens.push({ sign: (sign ?? name).replace(/\s+/, ' ') });
		else if (name) tokens.push(Object.hasOwn(CONSTANTS, name) ? { value: CONSTANTS[name] } : { name });
	}
	let [next, levels] = [0, 0];
	const take = (sign) => tokens[next]?.sign === sign && Boolean(++next);
	/** Expressions up to a closing bracket. */
	const inside = (close) => {
		const parsed = [];
		if (++levels > 32) fail();
		if (!take(close)) {
			do parsed.push(parse(0)); while (take(','));
			if (!take(close)) fail();
		}
		levels--;
		return parsed;
	};
	function atom() {
		const { value, name, sign } = tokens[next++] ?? fail();
		if (name && take('(')) {
			const [apply, given] = [own(FUNCTIONS, name) ?? fail(), inside(')')];
			if (!given.length || (given.length > 1 && apply.length)) fail();
			return (v) => apply(...given.map((item) => item(v)));
		}
		if (name) return names.includes(name) ? (v) => own(v, name) ?? null : fail();
		if (!sign) return () => value;
		const items = inside({ '(': ')', '[': ']' }[sign] ?? fail());
		if (sign === '[') return (v) => items.map((item) => item(v));
		return items.length === 1 ? items[0] : fail();
	}
	function parse(level, bare) {
		if (level === 5) {
			const [negative, inner] = [take('-'), atom()];
			return negative ? (v) => -numeric(inner(v)) : inner;
		}
		if (level === 2 && !bare && take('not')) {
			const inner = parse(2, true);
			return (v) => !truth(inner(v));
		}
		let left = parse(level + 1);
		for (let sign; (sign = Object.keys(OPERATORS[level]).find(take)); ) {
			const [a, b, apply] = [left, parse(level + 1), OPERATORS[level][sign]];
			left = (v) => apply(a, b, v);
			if (level === 2) break; // a < b < c is no rule
		}
		return left;
	}
	const rule = parse(0);
	return next === tokens.length ? rule : fail();
}

// ---- fields

/**
 * Reads "120" or "0.2 mL". Another unit is sent as it was typed, because the server has the table of units; then there is no
 * `value` for limits and rules here.
 */
export function readNumber(text, unit) {
	const [, number, rest] = /^\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*?)\s*$/.exec(text) ?? [];
	if (!number) return { problem: 'must be a number' };
	if (rest.startsWith(',')) return { problem: 'must have a decimal point, not a comma' };
	const value = Number(number);
	if (Math.abs(value) > Number.MAX_SAFE_INTEGER) return { problem: 'is too large for this page' };
	if (!rest || rest === unit || rest === symbol(unit)) return { sent: value, value };
	if (!symbol(unit)) return { problem: 'must be a number without a unit' };
	return { sent: text.trim(), note: `The server converts this to ${symbol(unit)}; press Check to see it.` };
}

/** A value that a schema takes, for hints and samples. */
function example(schema) {
	const { type, minItems, items = {}, properties = {}, format, minimum = 1, anyOf } = schema;
	const usual = schema.default ?? schema.enum?.[0];
	if (usual !== undefined || anyOf) return usual ?? example(anyOf[0]);
	if (type === 'array') return Array(Math.min(minItems || 1, 9)).fill(example(items));
	if (type === 'object') return Object.fromEntries(entries(properties).map(([key, member]) => [key, example(member)]));
	return { string: own(FORMATS, format) ?? 'text', boolean: true }[[type].flat()[0]] ?? minimum;
}

const wellsOf = (text) => text.toUpperCase().split(/[\s,;]+/).filter(Boolean);
/** A plate to click. It writes into the text field, which is the way for the keyboard, so it is hidden from readers. */
function plate(input, many, allowed, changed) {
	const cells = ['', ...'ABCDEFGH'].flatMap((row) => Array.from({ length: 13 }, (_, column) => {
		const title = row + (column || '');
		return set(row && column ? h(allowed?.includes(title) === false ? 'b.off' : 'b') : h('i', title), { title });
	}));
	const press = ({ target: { title } }) => {
		// The head of a row or column stands for all its wells.
		const hit = cells.filter((one) => one.matches('b:not(.off)')).map((one) => one.title)
			.filter((well) => well === title || (many && [well[0], well.slice(1)].includes(title)));
		if (!hit.length) return;
		const now = new Set(many ? wellsOf(input.value) : []);
		const act = hit.every((well) => now.has(well)) ? 'delete' : 'add';
		for (const well of hit) now[act](well);
		input.value = [...now].join(', ');
		changed();
	};
	const draw = () => cells.forEach((one) => one.classList.toggle('on', wellsOf(input.value).includes(one.title)));
	return [set(h('div.plate', set(h('div.wells', cells), { onclick: press })), { 'aria-hidden': 'true' }), draw];
}

let fieldCount = 0;
function makeField(spec, changed) {
	const { schema, type, required, widget } = { ...spec, schema: fits('object', spec.schema) ? spec.schema : {} };
	const usual = spec.default ?? null;
	const [unit, id] = [symbol(spec.unit), `field-${++fieldCount}`];
	const nullable = Object.keys(schema).length > 0 && !check(schema, null).length;
	const choices = schema.enum?.filter((one) => one !== null) ?? (type === 'boolean' && nullable ? [true, false] : null);
	const wells = widget === 'plate96' && /string|array/.test(type);
	let [touched, draw, grid] = [false, null, null];
	const edit = () => {
		touched = true;
		draw?.();
		changed();
	};
	const given = (value) => ({ sent: value, value });
	// Nothing typed: null where the schema takes it, else the default, which the server fills in.
	const nothing = () => (nullable && (required || usual !== null) ? given(null) : required ? { problem: 'is required' } : { value: usual });

	let [kind, attributes, hint] = ['input', {}, ''];
	let read = () => (input.value || (usual !== null && !required && !nullable) ? given(input.value) : nothing());
	let write = () => (input.value = usual ?? '');
	if (choices && !wells) {
		kind = 'select';
		read = () => (input.value ? given(choices[input.value]) : nothing());
		write = () => (input.value = choices.findIndex((one) => same(one, usual)));
	} else if (type === 'boolean') {
		attributes = { type: 'checkbox' };
		read = () => given(input.checked);
		write = () => (input.checked = usual === true);
	} else if (/integer|number/.test(type)) {
		// Not type=number: that changes under a mouse wheel, hides what it cannot read and takes no unit.
		attributes = { inputmode: 'decimal' };
		hint = nullable || usual === null ? '' : `default ${usual} ${unit}`;
		read = () => (input.value.trim() ? readNumber(input.value, spec.unit) : nothing());
	} else if (wells) {
		hint = type === 'array' ? 'type wells, or click them, a row or a column' : 'type a well or click it';
		read = () => {
			const names = wellsOf(input.value);
			const bad = names.find((name) => !/^[A-H](1[0-2]|[1-9])$/.test(name));
			if (bad) return { problem: `has "${bad}", which is not a well; wells are A1 to H12` };
			return type === 'array' ? given(names) : names.length > 1 ? { problem: 'must be one well' } : names.length ? given(names[0]) : nothing();
		};
		write = () => (input.value = [usual ?? []].flat().join(', '));
	} else if (type === 'string') {
		attributes = { type: spec.sensitive ? 'password' : 'text' };
	} else {
		kind = 'textarea';
		hint = `JSON, such as ${stringify(example(schema))}`;
		read = () => {
			const value = attempt(() => JSON.parse(input.value));
			return !input.value.trim() ? nothing() : value === undefined ? { problem: 'is not JSON yet' } : given(value);
		};
		write = () => (input.value = usual === null ? '' : json(usual));
	}
	const option = (text, value) => set(h('option', text), { value });
	const input = set(h(kind, choices && !wells && [(nullable || usual === null) && option(nullable ? 'no value' : 'choose …', ''),
		choices.map((one, i) => option(`${short([one])} ${unit}`, i))]),
	{ id, autocomplete: spec.sensitive ? 'new-password' : 'off', spellcheck: 'false', rows: 4, oninput: edit,
		'aria-describedby': `${id}-hint ${id}-error`, ...attributes });
	write();
	if (wells) [grid, draw] = plate(input, type === 'array', choices ?? schema.items?.enum, edit);
	draw?.();

	const hints = [spec.help || schema.description, !choices && limits(schema, unit),
		schema.items && `each ${limits(schema.items, unit) || typeWords(typesOf(schema.items))}`, hint, nullable && kind !== 'select' && 'empty: no value'];
	const [error, note] = [set(h('p.error'), { id: `${id}-error`, 'aria-live': 'polite' }), h('p.note')];
	const show = (text) => {
		tellOnce(error, text);
		input.setAttribute('aria-invalid', Boolean(text));
	};
	const label = set(h('label', spec.title || spec.name, spec.title && h('code', ` ${spec.name}`), required && h('span.must', ' required')), { for: id });
	return {
		spec: { ...spec, schema }, input, show,
		root: h('div.field', label, set(h('p.hint', hints.filter(Boolean).join(' · ')), { id: `${id}-hint` }),
			h(`div.line.${kind}`, input, kind === 'input' && h('span.unit', unit)), note, error, grid),
		/** `{sent?, value?, problem?}`. A message shows once the field was touched, or `always`. */
		read(always) {
			const got = read();
			if ('sent' in got && 'value' in got) got.problem = check(schema, got.value, unit).join('; ');
			show((touched || always) && got.problem ? got.problem : '');
			fill(note, got.note);
			return got;
		},
	};
}

// ---- actions

let catalogue = null;

const loadActions = () => into($('action-list'), async () => {
	const answer = await call('GET', '/actions');
	if (same(answer, catalogue)) return; // keeps what was typed
	catalogue = answer;
	fill($('action-list'), answer.actions.map((spec) => actionCard(spec, answer.actions.length < 3)));
});

const badge = (text) => text && h('span.badge', text);
const actionCard = (spec, open) =>
	folded('details.card.action', [h('h3', spec.title || spec.name), h('code.soft', spec.name), badge(spec.effects !== 'none' && spec.effects),
		badge(spec.duration && `about ${spec.duration}`), badge(spec.role && `role ${spec.role}`)], () => actionForm(spec), open);

function actionForm(spec) {
	let pending = null; // the call that got no answer: `{text, key}`
	const output = set(h('div'), { role: 'status' });
	const code = codeTabs(samples(spec.name, {}));
	const fields = spec.parameters.map((parameter) => makeField(parameter, () => read()));
	// A rule that cannot be compiled here stays open for the server.
	const names = fields.map((field) => field.spec.name);
	const rules = spec.rules.map(({ expr, message }) => ({ expr, message, mark: h('span'), holds: attempt(() => compileRule(expr, names)) }));

	/** Reads fields and rules; `first` is the first field that is wrong. */
	function read(always) {
		// Without prototype: a parameter may be called __proto__.
		const [body, values, shown] = [0, 0, 0].map(() => Object.create(null));
		let [first, known, broken] = [null, true, false];
		for (const field of fields) {
			const [got, { name, required, sensitive, schema }] = [field.read(always), field.spec];
			if (got.problem) first ??= field;
			else if ('sent' in got) shown[name] = body[name] = got.sent;
			if ('value' in got) values[name] = got.value;
			else known = false;
			if (required && !(name in body)) shown[name] = example(schema);
			if (sensitive && name in shown) shown[name] = '***';
		}
		for (const { holds, mark, message } of rules) {
			const state = !holds || !known || first ? 'wait' : attempt(() => holds(values)) === true ? 'ok' : 'no';
			broken ||= state === 'no';
			mark.className = `pill ${state}`;
			fill(mark, `${message}: ${{ ok: 'holds', no: 'does not hold', wait: 'not known yet' }[state]}`);
		}
		code.show(samples(spec.name, shown));
		return { body, first, broken };
	}

	/** Field errors go beside the fields; what belongs to none stays with the message. */
	function refuse(problem) {
		let first = null;
		for (const { loc, msg } of problem.errors ?? []) {
			const field = fields.find((one) => one.spec.name === loc?.[1]);
			field?.show(String(msg).replace(/^parameter '[^']*': /, ''));
			first ??= field?.input;
			if (!field && msg !== problem.message) problem.more.push(msg);
		}
		fill(output, explain(problem));
		return first;
	}

		const submit = (work) => async (event) => {
		event.preventDefault();
		const { body, first, broken } = read(true);
		first?.input.focus();
		if (first || broken) return fill(output, h('p.problem', first ? 'See the marked fields.' : 'A rule does not hold.'));
		for (const one of buttons) one.disabled = true;
		const refused = await work(body).catch(refuse);
		for (const one of buttons) one.disabled = false;
		refused?.focus();
	};
	const ask = submit(async (body) => {
		const { parameters } = await call('POST', `/check/${segment(spec.name)}`, { body });
		fill(output, h('div.fine', 'Accepted; nothing was run. The device would get:', block(json(parameters))));
	});
	const run = (simulate) => submit(async (body) => {
		// A call without answer may have arrived. The same call again keeps its key, so that it cannot act twice.
		const text = json([body, simulate]);
		if (pending?.text !== text) pending = { text, key: crypto.getRandomValues(new Uint32Array(4)).join('-') };
		const headers = { 'Idempotency-Key': pending.key, Prefer: 'respond-async', 'Interlock-Simulate': String(simulate) };
		try {
			const { id, run_id: ended } = await call('POST', `/execute/${segment(spec.name)}`, { body, headers, seconds: 60 });
			pending = null;
			fill(output, h('p.fine', 'Accepted as ', runLink(id ?? ended)));
			location.hash = runAddress(id ?? ended);
			loadRuns();
			refresh();
		} catch (problem) {
			// A gateway's own answer has no code and says nothing about the server behind it.
			if (problem.code) pending = null;
			else problem.more?.push('It is not known whether the run has started. Press the same button again: the same values never act twice.');
			throw problem;
		}
	});
	// Enter in a field checks: only a pressed button makes a robot move.
	const buttons = [button('Run', run(false), { class: 'primary' }), button('Simulate', run(true)), h('button', 'Check')];
	const role = spec.role ?? 'operator';
	const form = set(h('form', spec.doc && h('p.doc', spec.doc), fields.map((field) => field.root),
		rules.length > 0 && [h('h4', 'Rules'), h('ul.rules', rules.map(({ mark, expr }) => h('li', mark, h('code.soft', ` ${expr}`))))],
		h('div.buttons', buttons), !me?.roles.includes(role) && h('p.hint', `This needs the role ${role}.`), output,
		h('details', h('summary.soft', 'The same as code'), code.root)), { novalidate: true, onsubmit: ask });
	read();
	return form;
}

// ---- code

const shell = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);
function python(value) {
	if (Array.isArray(value)) return `[${value.map(python).join(', ')}]`;
	if (fits('object', value)) return `{${entries(value).map(([key, member]) => `${json(key)}: ${python(member)}`).join(', ')}}`;
	return { null: 'None', true: 'True', false: 'False' }[json(value)] ?? json(value);
}
const curl = (verb, path, body) => [`curl -X ${verb} ${shell(location.origin + path)} -H "Authorization: Bearer $INTERLOCK_TOKEN"`,
	path.startsWith('/execute') && '-H "Idempotency-Key: $(uuidgen)"',
	body && `-H 'Content-Type: application/json' -d ${shell(stringify(body))}`].filter(Boolean).join(' \\\n  ');

/** Words that the Python client has taken. */
const TAKEN = /^(_.*|name|title|status|stop|release|clear_attention|reload|actions|simulate|check|idempotency_key)$/;
/** One action with these parameters, in three languages. */
function samples(action, parameters) {
	const given = entries(parameters);
	const name = device?.name ?? catalogue?.device.name;
	const taken = [action, ...given.map(([key]) => key)].some((word) => TAKEN.test(word));
	const python3 = taken ? `[${json(action)}].submit(${python(parameters)})`
		: `.${action}(${given.map(([key, value]) => `${key}=${python(value)}`).join(', ')})`;
	return { curl: curl('POST', `/execute/${action}`, parameters),
		Python: `from interlock import Client\n\ndevice = Client(${json(location.origin)}).device(${json(name)})\nrun = device${python3}\nprint(run.result())`,
		CLI: ['interlock run', shell(name), action, ...given.map(([key, value]) => shell(`${key}=${typeof value === 'string' ? value : stringify(value)}`))].join(' ') };
}

let language = 'curl'; // as chosen last, on any tabs
function codeTabs(shown) {
	const text = h('code');
	const tabs = Object.keys(shown).map((name) => button(name, () => show(shown, (language = name))));
	function show(next) {
		shown = next;
		const name = language in shown ? language : 'curl';
		fill(text, shown[name]);
		for (const tab of tabs) tab.setAttribute('aria-pressed', tab.textContent === name);
	}
	show(shown);
	return { root: h('div', h('div.tabs', tabs, copyButton(text)), block(text)), show };
}

// ---- runs

const simulated = (run) => run.simulated && h('span.badge.simulated', 'SIMULATED');
const loadRuns = () => into($('run-list'), async () => {
	const { items } = await call('GET', '/runs?limit=20');
	const row = (run) => set(h('a', pill(run.state), h('span', run.action, ' ', simulated(run)),
		h('small', clock(run.created_at), ` ${run.executed_by} ${span(run.duration_seconds)}`)), { href: runAddress(run.id) });
	fill($('run-list'), items.length ? items.map(row) : 'Nothing was run yet.');
});
on('runs-again', 'click', loadRuns);

const isFinal = (state) => !/queued|running/.test(state);
const SILENCE_SECONDS = 45; // the server says something every 15

/** Gives every event of a run to `take`, once and in order, until the run is over. Survives cuts. */
async function follow(id, signal, take, tell) {
	let [last, pause, watch] = [0, 1, 0];
	while (!signal.aborted) {
		try {
			// EventSource cannot send the token.
			const headers = { Accept: 'text/event-stream', ...(last && { 'Last-Event-ID': last }) };
			const { body } = await request('GET', `/runs/${segment(id)}/events`, { headers, signal });
			const reader = body.pipeThrough(new TextDecoderStream()).getReader();
			tell('');
			for (let part, rest = ''; !(part = await reader.read()).done; ) {
				clearTimeout(watch);
				watch = setTimeout(() => reader.cancel(), SILENCE_SECONDS * 1000);
				// The server writes an event's data in one line, and comments as signs of life.
				const blocks = (rest + part.value).split('\n\n');
				rest = blocks.pop();
				for (const [, data] of blocks.map((text) => /^data:(.*)$/m.exec(text)).filter(Boolean)) {
					const event = JSON.parse(data);
					if (event.seq <= last) continue;
					last = event.seq;
					pause = 1;
					take(event);
					if (event.kind === 'state' && isFinal(event.data.state)) return void reader.cancel();
				}
			}
		} catch (problem) {
			if (problem.status >= 400 && problem.status < 429) throw problem;
			pause = Math.max(pause, problem.wait ?? 0);
		} finally {
			clearTimeout(watch);
		}
		if (signal.aborted) return;
		tell('Connection lost; reconnecting …');
		await sleep(pause);
		pause = Math.min(pause * 2, 15);
	}
}

/** For JSON.parse: keeps integers that a double cannot hold, such as times in nanoseconds, as they were written. */
const exact = (_, value, { source } = {}) => (Number.isInteger(value) && !Number.isSafeInteger(value) ? JSON.rawJSON?.(source) ?? value : value);

let opened = null;
function closeRun() {
	opened?.abort();
	opened = null;
}

async function openRun(id) {
	if (opened?.run === id) return;
	closeRun();
	const control = (opened = Object.assign(new AbortController(), { run: id }));
	const [state, facts, bar, step, notice, failure, result] = [...'1234567'].map(() => h('div'));
	const title = set(h('h2', 'Run'), { tabindex: -1 });
	const [lines, metrics, files] = [set(h('ol.log'), { tabindex: 0, 'aria-label': 'Log' }), h('tbody'), h('ul')];
	const part = (name, content) => set(h('div', h('h3', name), content), { hidden: true });
	const cancel = button('Cancel this run', () => into(failure, async () => {
		fill(notice, 'Cancelling …');
		await call('POST', `/runs/${segment(id)}/cancel`, { body: { reason: 'cancelled in the browser' } });
	}));
	fill($('run'), h('div.head', title, state, cancel), facts, bar, step, notice, failure, result, part('Metrics', h('table', metrics)),
		part('Files', files), part('Log', lines));
	const reveal = (element) => ($('run').hidden = element.closest('#run > div').hidden = false);
	reveal(title);
	title.focus();

	let run = null;
	const show = (name) => {
		fill(state, pill(name));
		cancel.hidden = isFinal(name);
		if (!isFinal(name)) return;
		fill(notice);
		bar.querySelector(':indeterminate')?.remove();
	};
	const elapsed = h('span');
	const tick = () => run && fill(elapsed, span(run.duration_seconds ?? (Date.now() - Date.parse(run.started_at)) / 1000));
	const ticking = setInterval(tick, 1000);
	const progress = ({ current, total, message }) => {
		fill(bar, set(h('progress'), { 'aria-label': 'Progress', max: total, value: total && Math.min(current, total) }));
		fill(step, total ? `${Math.round((current / total) * 100)} %, ${current} of ${total}` : current, message && `: ${message}`);
	};
	const series = new Map();
	const metric = ({ name, value, unit, labels }) => {
		const key = `${name} ${entries(labels).map((pair) => pair.join('=')).join(' ')}`;
		if (series.size < 200 || series.has(key)) series.set(key, `${value} ${symbol(unit)}`);
		fill(metrics, [...series].map((row) => h('tr', row.map((cell) => h('td', cell)))));
		reveal(metrics);
	};
	let pinned = true;
	lines.addEventListener('scroll', () => (pinned = lines.scrollHeight - lines.scrollTop - lines.clientHeight < 40));
	const log = ({ level, message }, at) => {
		lines.append(h(`li.${level}`, clock(at), level === 'info' ? ' ' : ` ${level}: `, String(message).slice(0, 10_000)));
		if (lines.children.length > 1000) lines.firstChild.remove();
		reveal(lines);
		// Measuring for every line is slow.
		if (pinned) requestAnimationFrame(() => (lines.scrollTop = lines.scrollHeight));
	};
	const artifact = (file) => reveal(files, files.append(fileRow(id, file)));
	const kinds = { progress, metric, artifact, log,
		state: ({ state: name }, at) => {
			if (name === 'running') run.started_at ??= at;
			show(name);
		},
		rung: ({ rung, outcome, duration_ms: took }, at) => log({ level: 'stopping', message: `${rung} ${outcome} ${span(took / 1000)}` }, at) };
	const load = async () => {
		try {
			const response = await request('GET', `/runs/${segment(id)}`, { signal: control.signal });
			run = JSON.parse(await response.text(), exact);
		} catch (problem) {
			if (control.signal.aborted || (problem.status && !problem.wait)) throw problem;
			fill(failure, explain(problem));
			await sleep(problem.wait || 3);
			return load();
		}
		fill(title, catalogue?.actions.find((one) => one.name === run.action)?.title || run.action, ' ', simulated(run));
		tick();
		fill(facts, h('p.hint', `${id} · by ${run.executed_by} · `, clock(run.started_at ?? run.created_at), ' · ', elapsed),
			folded('details', 'Parameters', () => block(json(run.parameters))));
		show(run.state);
		fill(failure, run.error && explain({ ...run.error, request: run.request_id }));
		if (run.state === 'succeeded') {
			const text = h('code', json(run.result).slice(0, 200_000));
			fill(result, h('div.head', h('h3', 'Result'), copyButton(text)), block(text));
		}
	};
	try {
		await load();
		const live = !isFinal(run.state);
		await follow(id, control.signal, ({ kind, data, at }) => own(kinds, kind)?.(data, at), (text) => fill(notice, text));
		if (live && !control.signal.aborted) {
			await load();
			if (!run.finished_at) await sleep(1).then(load); // the record may follow the event
			say(`${run.action} ${run.state}`);
			refresh();
			loadRuns();
		}
	} catch (problem) {
		if (!control.signal.aborted) fill(failure, explain(problem));
	}
	clearInterval(ticking);
}

/** A file of a run. It is not to be trusted: it is saved under its name, never opened here. */
function fileRow(run, { name, media_type: type, bytes }) {
	const problem = h('div');
	const save = button(`Save ${name}`, () => into(problem, async () => {
		const response = await request('GET', `/runs/${segment(run)}/artifacts/${segment(name)}`, { seconds: 60 });
		const href = URL.createObjectURL(new Blob([await response.arrayBuffer()], { type: 'application/octet-stream' }));
		set(h('a'), { href, download: name }).click();
		setTimeout(() => URL.revokeObjectURL(href), 60_000);
	}));
	return h('li', save, h('small', ` ${type}, ${bytes} bytes`), problem);
}

// ---- reference

const loadReference = () => $('operations').querySelector('section') ?? into($('operations'), async () => {
	const api = await call('GET', '/openapi.json');
	const groups = {};
	for (const [path, item] of entries(api.paths)) {
		for (const [method, operation] of entries(item)) {
			const [verb, [tag]] = [method.toUpperCase(), operation.tags];
			groups[tag] ??= h('section.card', h('h3', tag));
			groups[tag].append(folded('details.operation', [h('code.verb', verb), h('code', path), h('span.soft', operation.summary)],
				() => operationBody(api, verb, path, operation)));
		}
	}
	fill($('operations'), Object.values(groups));
});

function operationBody(api, verb, path, { description, parameters = [], requestBody, responses, 'x-interlock-access': access }) {
	const body = requestBody?.content?.['application/json']?.schema;
	const action = /^\/execute\/(\w+)$/.exec(path)?.[1];
	const sample = body && example(resolve(api, body));
	return h('div', description && h('p.doc', description), h('p', 'Who may call it: ', badge(access)),
		parameters.length > 0 && h('h4', 'Parameters'),
		h('ul.tree', parameters.map((one) =>
			h('li', tree(api, { description: one.description, ...one.schema }, `${one.name} (${one.in}${one.required ? ', required' : ''})`)))),
		body && [h('h4', 'Body'), tree(api, body, '', true)],
		h('h4', 'Answers'), h('ul.tree', entries(responses).map(([status, answer]) =>
			h('li', tree(api, Object.values(answer.content ?? {})[0]?.schema, `${status} ${answer.description}`)))),
		h('h4', 'Code'), codeTabs(action ? samples(action, sample) : { curl: curl(verb, path, sample) }).root);
}

const resolve = (api, schema = {}) => own(api.components.schemas, schema.$ref?.split('/').pop()) ?? schema;

function schemaWords(api, schema) {
	const { anyOf, enum: choices, items, default: usual, description, 'x-unit': unit, ...inner } = resolve(api, schema);
	const type = anyOf ? anyOf.map((one) => schemaWords(api, one)).join(' or ')
		: items ? `list of ${schemaWords(api, items)}` : choices ? short(choices) : schema.$ref?.split('/').pop() ?? typesOf(inner).join(' or ');
	return [type, limits(inner, symbol(unit)), isGiven(usual) && `default ${stringify(usual)}`, description].filter(Boolean).join(', ');
}

/** A schema as a tree. Members are made when opened, so that a schema may contain itself. */
function tree(api, schema, name, open) {
	const inner = resolve(api, schema);
	const { properties, required, 'x-rules': rules = [] } = resolve(api, inner.items ?? inner);
	const head = [name && h('code', name), ' ', schema && h('span.soft', schemaWords(api, schema))];
	return properties ? folded('details', head, () => h('ul.tree', entries(properties).map(([key, member]) =>
		h('li', tree(api, member, required?.includes(key) ? key : `${key}?`))),
		rules.map((rule) => h('li', 'Rule: ', rule.message))), open) : h('div', head);
}

// ---- pages

/** `#control`, `#reference` and `#run/ID`: every run has an address of its own. */
function route() {
	if (!token || location.hash === '#main') return; // #main is the skip link
	const [page, id] = location.hash.slice(1).split('/');
	for (const name of ['reference', 'control']) {
		const open = (page === 'reference') === (name === 'reference');
		$(name).hidden = !open;
		$(`to-${name}`).toggleAttribute('aria-current', open);
	}
	if (page === 'reference') loadReference();
	else if (page === 'run' && /^[\w-]+$/.test(id)) openRun(id);
	else {
		closeRun();
		$('run').hidden = true;
	}
}
addEventListener('hashchange', route);
into($('sign-in-error'), arrive);
