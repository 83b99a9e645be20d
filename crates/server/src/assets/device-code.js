// The page that lets a device in. The token lives in one variable, is never stored, and is dead when the page has decided.
// Text reaches the page through text nodes only.

const $ = (id) => document.getElementById(id);
let token = null;

async function call(path, body) {
	const headers = { 'content-type': 'application/json' };
	if (token) headers.authorization = `Bearer ${token}`;
	const response = await fetch(path, { method: 'POST', headers, body: JSON.stringify(body), credentials: 'omit', cache: 'no-store' });
	const answer = await response.json().catch(() => ({}));
	if (!response.ok) throw new Error(answer.detail || `The server answered ${response.status}.`);
	return answer;
}

const say = (text) => { $('said').textContent = text; };

async function leave() {
	$('found').hidden = true;
	$('form').hidden = true;
	await call('/auth/logout', {}).catch(() => {});
	token = null;
}

$('form').addEventListener('submit', async (event) => {
	event.preventDefault();
	say('');
	try {
		if (!token) {
			const body = { username: $('name').value, password: $('password').value, refresh: false };
			if ($('otp').value) body.otp = $('otp').value;
			token = (await call('/auth/login', body)).access_token;
			$('password').value = '';
			$('otp').value = '';
			for (const id of ['name', 'password', 'otp']) $(id).disabled = true;
		}
		const found = await call('/auth/device/show', { user_code: $('code').value });
		const facts = [['Program', found.client], ['Address', found.client_ip], ['It says it is', found.user_agent],
			['Limited to', found.scopes ? found.scopes.join(', ') : 'everything that you may do'], ['Asked at', found.created_at]];
		$('facts').replaceChildren(...facts.flatMap(([name, value]) => {
			const [term, text] = [document.createElement('dt'), document.createElement('dd')];
			term.textContent = name;
			text.textContent = value;
			return [term, text];
		}));
		$('found').hidden = false;
		$('code').readOnly = true;
	} catch (error) {
		say(error.message);
	}
});

for (const [id, text] of [['approve', 'The device is let in. You can close this page.'], ['deny', 'The device is kept out. You can close this page.']]) {
	$(id).addEventListener('click', async () => {
		try {
			await call(`/auth/device/${id}`, { user_code: $('code').value });
			await leave();
			say(text);
		} catch (error) {
			say(error.message);
		}
	});
}
