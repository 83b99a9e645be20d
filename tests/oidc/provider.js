// An OpenID Connect provider for tests: the package oidc-provider with clients, people and groups of its own. Who signs in
// is named in the cookie `who`; there is no password and no page, so a test can be the browser. `POST /exchange/CLIENT` gives a
// client that has registered itself another secret, as its owner would on the provider's pages.
//
//   node provider.js DIR PORT     certificate in DIR/server.pem and DIR/server.key; writes DIR/where when it listens
import { readFileSync, writeFileSync } from 'node:fs';
import https from 'node:https';
import { webcrypto } from 'node:crypto';

// What the package wants and Node 18, which Debian 12 has, does not know yet.
globalThis.crypto ??= webcrypto;
const { default: Provider } = await import('oidc-provider');

const [dir, port] = process.argv.slice(2);
const issuer = `https://localhost:${port}`;
const people = {
  ana: { name: 'Ana Lovelace', preferred_username: 'ana', email: 'ana@lab.example', email_verified: true, groups: ['lab-ops', 'site'] },
  ben: { name: 'Ben Turing', preferred_username: 'ben', email: 'ana@lab.example', email_verified: false, groups: [] },
};
const key = (kid, alg, generated) => ({ ...generated, kid, alg, use: 'sig' });
const generate = async (name) => {
  const { generateKeyPair, exportJWK } = await import('jose');
  return exportJWK((await generateKeyPair(name, { extractable: true })).privateKey);
};
const jwks = {
  keys: [
    key('rsa', 'RS256', await generate('RS256')),
    key('pss', 'PS256', await generate('PS256')),
    key('ec', 'ES256', await generate('ES256')),
    key('ed', 'EdDSA', await generate('EdDSA')),
  ],
};
const redirect_uris = ['https://interlock.example/auth/oidc/callback'];
const post_logout_redirect_uris = ['https://interlock.example/'];
const common = { redirect_uris, post_logout_redirect_uris, response_types: ['code'], grant_types: ['authorization_code'] };
// The first one has every sign that must be encoded in a header.
const secrets = { basic_secret: 'a secret: of/the+client & more', post_secret: 'another secret', workload_secret: 'a third secret' };
const clientKey = JSON.parse(readFileSync(`${dir}/client.jwk`, 'utf8'));

const provider = new Provider(issuer, {
  jwks,
  clients: [
    { ...common, client_id: 'basic', client_secret: secrets.basic_secret, token_endpoint_auth_method: 'client_secret_basic' },
    { ...common, client_id: 'post', client_secret: secrets.post_secret, token_endpoint_auth_method: 'client_secret_post', id_token_signed_response_alg: 'PS256' },
    { ...common, client_id: 'public', token_endpoint_auth_method: 'none', id_token_signed_response_alg: 'ES256', application_type: 'web' },
    { ...common, client_id: 'keyed', token_endpoint_auth_method: 'private_key_jwt', token_endpoint_auth_signing_alg: 'ES256', id_token_signed_response_alg: 'EdDSA', jwks: { keys: [clientKey] } },
    // Programs: they get signed access tokens (RFC 9068) for whatever they name as resource.
    { client_id: 'nightly', client_secret: secrets.workload_secret, redirect_uris: [], response_types: [], grant_types: ['client_credentials'] },
    { client_id: 'stranger', client_secret: secrets.workload_secret, redirect_uris: [], response_types: [], grant_types: ['client_credentials'] },
  ],
  claims: { openid: ['sub'], profile: ['name', 'preferred_username'], email: ['email', 'email_verified'], groups: ['groups'] },
  scopes: ['openid', 'profile', 'email', 'groups'],
  enabledJWA: { idTokenSigningAlgValues: ['RS256', 'PS256', 'ES256', 'EdDSA'] },
  pkce: { required: () => true },
  features: { devInteractions: { enabled: false }, backchannelLogout: { enabled: true }, rpInitiatedLogout: { enabled: true }, registration: { enabled: true },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: (ctx, resource) => ({ scope: '', audience: resource, accessTokenFormat: 'jwt', accessTokenTTL: 300, jwt: { sign: { alg: 'ES256' } } }),
    } },
  cookies: { keys: ['not a secret: this provider lives for one test run'] },
  findAccount: (ctx, id) => people[id] && { accountId: id, claims: () => ({ sub: id, ...people[id] }) },
  interactions: { url: (ctx, interaction) => `/interaction/${interaction.uid}` },
  ttl: { AuthorizationCode: 60, IdToken: 600, AccessToken: 600, Session: 600, Grant: 600, Interaction: 600 },
});

// The person is whoever the cookie says, and consents to everything; `nobody` says no.
const interact = async (request, response) => {
  const { prompt, params, session } = await provider.interactionDetails(request, response);
  const who = /(?:^|; )who=(\w+)/.exec(request.headers.cookie ?? '')?.[1] ?? 'ana';
  if (who === 'nobody') {
    return provider.interactionFinished(request, response, { error: 'access_denied' });
  }
  if (prompt.name === 'login') {
    return provider.interactionFinished(request, response, { login: { accountId: who } });
  }
  const grant = new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
  grant.addOIDCScope(params.scope);
  const grantId = await grant.save();
  return provider.interactionFinished(request, response, { consent: { grantId } }, { mergeWithLastSubmission: true });
};

const exchange = async (id, response) => {
  const client = await provider.Client.find(id);
  client.clientSecret = Buffer.from(globalThis.crypto.getRandomValues(new Uint8Array(32))).toString('base64url');
  response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify({ client_secret: client.clientSecret }));
};

provider.on('backchannel.error', (ctx, error, client) => console.error('sign-out is not told to', client.clientId, error.message));
provider.on('grant.error', (ctx, error) => console.error(error.message, error.error_detail ?? ''));
const handler = provider.callback();
const server = https.createServer(
  { cert: readFileSync(`${dir}/server.pem`), key: readFileSync(`${dir}/server.key`) },
  (request, response) => {
    const asked = /^\/exchange\/([\w-]+)$/.exec(request.url);
    if (!asked && !request.url.startsWith('/interaction/')) return handler(request, response);
    return (asked ? exchange(asked[1], response) : interact(request, response)).catch((error) => {
      console.error(error);
      response.writeHead(500).end();
    });
  },
);
server.on('error', (error) => {
  console.error(error);
  process.exit(1);
});
server.listen(Number(port), '127.0.0.1', () => {
  const about = {
    issuer,
    ca: `${dir}/ca.pem`,
    redirect_uri: redirect_uris[0],
    client_key: `${dir}/client.key`,
    ...secrets,
  };
  writeFileSync(`${dir}/where`, `${JSON.stringify(about)}\n`, { mode: 0o600 });
});
process.on('SIGTERM', () => process.exit(0));
