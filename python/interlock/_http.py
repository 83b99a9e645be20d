"""One kept-alive HTTP connection to one server, on the standard library."""

import collections
import http.client
import ipaddress
import json
import os
import select
import socket
import ssl
import threading
import time
import urllib.parse
import warnings

from .errors import ConnectionFailed, ProtocolError

MAX_BODY = 64 * 1024 * 1024
_ATTEMPTS = 4
_PAUSES = (0.1, 0.4, 1.0)
_MAX_REDIRECTS = 3

Response = collections.namedtuple("Response", "status headers body")
_LOST = (ConnectionError, http.client.HTTPException, ssl.SSLEOFError, ssl.SSLZeroReturnError)


class Transport:
    """Where requests go and how: address, certificates, time limits. Knows nothing of signing in.

    timeout   seconds for one request in all, connecting and re-sending included
    ca_file   PEM file of the only authority to trust, for a private one; the system's authorities otherwise
    verify    False accepts any certificate: whoever is on the network can then read and change everything
    client_cert  PEM file of our certificate and its key, or a pair of files, for servers that ask for one
    """

    def __init__(self, base_url, timeout=30.0, ca_file=None, verify=True, user_agent="interlock-python",
                 allow_plain_http=False, client_cert=None):
        parts = urllib.parse.urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("base_url must look like https://robot.example.org:8000, not %r" % (base_url,))
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("base_url must not hold a user name, a password, a query or a fragment")
        if not timeout > 0:
            raise ValueError("timeout must be above 0 seconds")
        self.scheme = parts.scheme
        self.host = parts.hostname
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.prefix = parts.path.rstrip("/")
        self.timeout = timeout
        self.user_agent = user_agent
        self.allow_plain_http = allow_plain_http
        self._options = (ca_file, verify)
        self._context = _tls_context(ca_file, verify, client_cert) if parts.scheme == "https" else None
        self._connection = None
        self._lock = threading.RLock()

    @property
    def base_url(self):
        """The address without a trailing slash."""
        host = "[%s]" % self.host if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        port = "" if self.port == default else ":%d" % self.port
        return "%s://%s%s%s" % (self.scheme, host, port, self.prefix)

    def refuse_plain_credentials(self):
        """Raise unless a password or token may travel to this server."""
        if self.scheme == "http" and not self.allow_plain_http and not is_loopback(self.host):
            raise ConnectionFailed("refused to send credentials to %s without encryption" % self.host,
                                   code="insecure_transport",
                                   advice="Use https://, or pass allow_plain_http=True on a network you trust.")

    def close(self):
        """Close the connection; the next request opens a new one."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def request(self, method, path, body=None, headers=None, resend=False, timeout=None):
        """Send a request and return ``Response(status, headers, body)``.

        ``resend`` says that sending it twice does no harm, so that a lost connection may be tried again. Raises
        :class:`ConnectionFailed`.
        """
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        with self._lock:
            lost = None
            for attempt in range(_ATTEMPTS):
                try:
                    return self._exchange(method, path, body, headers or {}, deadline)
                except _LOST as problem:
                    self.close()
                    never_connected = lost is None and isinstance(problem, ConnectionRefusedError)
                    lost = problem
                    if not resend or never_connected or attempt == _ATTEMPTS - 1:
                        break
                    time.sleep(max(0.0, min(_PAUSES[attempt], deadline - time.monotonic())))
                except OSError as problem:
                    self.close()
                    raise self._failure(problem)
            raise self._failure(lost)

    def open_stream(self, path, headers, timeout):
        """GET on a connection of its own, for answers without an end. Returns ``(connection, response)``.

        ``timeout`` is the longest silence in seconds.
        """
        connection = self._connect(timeout)
        try:
            connection.request("GET", self.prefix + path, headers=self._headers(headers))
            return connection, connection.getresponse()
        except BaseException as problem:
            connection.close()
            if isinstance(problem, (OSError, http.client.HTTPException)):
                raise self._failure(problem)
            raise

    def _exchange(self, method, path, body, headers, deadline):
        headers = self._headers(headers)
        path = self.prefix + path
        for _ in range(_MAX_REDIRECTS + 1):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise socket.timeout("timed out")
            connection = self._ready_connection(remaining)
            connection.request(method, path, body=body, headers=headers)
            connection.sock.settimeout(max(0.001, deadline - time.monotonic()))
            answer = connection.getresponse()
            content = answer.read(MAX_BODY + 1)
            if len(content) > MAX_BODY:
                self.close()
                raise ProtocolError("the answer is larger than %d bytes" % MAX_BODY, answer.status)
            if answer.will_close:
                self.close()
            if answer.status not in (301, 302, 303, 307, 308):
                return Response(answer.status, answer.headers, content)
            path = self._redirect(method, path, answer)
        raise ProtocolError("too many redirects", code="redirected")

    def _redirect(self, method, path, answer):
        """The path to go to. Only within this server, and never with another method."""
        here = "%s://%s:%d" % (self.scheme, "[%s]" % self.host if ":" in self.host else self.host, self.port)
        target = urllib.parse.urlsplit(urllib.parse.urljoin(here + path, answer.headers.get("Location", "")))
        port = target.port or (443 if target.scheme == "https" else 80)
        if (target.scheme, target.hostname, port) != (self.scheme, self.host, self.port):
            raise ProtocolError("refused a redirect to %s://%s" % (target.scheme, target.hostname), answer.status,
                                code="redirected", advice="Use the address the server really has.")
        if method != "GET" and answer.status not in (307, 308):
            raise ProtocolError("refused a redirect of a %s" % method, answer.status, code="redirected")
        return target.path + ("?" + target.query if target.query else "")

    def _headers(self, headers):
        result = {"User-Agent": self.user_agent, "Accept": "application/json, application/problem+json"}
        result.update(headers)
        return result

    def _ready_connection(self, timeout):
        connection = self._connection
        if connection is not None and (connection.sock is None or _is_stale(connection.sock)):
            self.close()
            connection = None
        if connection is None:
            connection = self._connection = self._connect(timeout)
        connection.sock.settimeout(timeout)
        return connection

    def _connect(self, timeout):
        if self._context is not None:
            connection = http.client.HTTPSConnection(self.host, self.port, timeout=timeout, context=self._context)
        else:
            connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            connection.connect()
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException as problem:
            connection.close()
            if isinstance(problem, OSError) and not isinstance(problem, _LOST):
                raise self._failure(problem)
            raise
        return connection

    def _failure(self, problem):
        address = "%s:%d" % (self.host, self.port)
        if isinstance(problem, ssl.SSLCertVerificationError):
            reason = getattr(problem, "verify_message", "") or str(problem)
            return ConnectionFailed("the certificate of %s is not trusted: %s" % (address, reason),
                                    code="certificate_not_trusted",
                                    advice="Pass ca_file= with the certificate of the authority that signed it.")
        if isinstance(problem, socket.timeout):
            return ConnectionFailed("no answer from %s in time" % address, code="timeout",
                                    advice="The call may still be going on: look at the device's runs before calling "
                                           "again, or use a longer timeout.")
        if isinstance(problem, socket.gaierror):
            return ConnectionFailed("the name %s is not known" % self.host, code="unknown_host")
        if isinstance(problem, ConnectionRefusedError):
            return ConnectionFailed("nothing listens at %s" % address, code="refused",
                                    advice="Start the server, or correct the address.")
        return ConnectionFailed("the connection to %s broke: %s" % (address, problem or type(problem).__name__),
                                code="connection_lost")


def _tls_context(ca_file, verify, client_cert):
    context = ssl.create_default_context(cafile=ca_file)
    if client_cert:
        context.load_cert_chain(*([client_cert] if isinstance(client_cert, (str, bytes, os.PathLike)) else client_cert))
    if hasattr(ssl, "TLSVersion"):
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not verify:
        warnings.warn("certificate verification is off: anyone on the network can read and change this traffic",
                      stacklevel=4)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _is_stale(connected):
    """True when the server has closed a kept-alive connection, or sent something nobody asked for."""
    try:
        poller = select.poll()
        poller.register(connected, select.POLLIN)
        return bool(poller.poll(0))
    except (OSError, ValueError):
        return True


def is_loopback(host):
    """True when ``host`` can only be this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_json(response):
    """The body as JSON. Raises :class:`ProtocolError`."""
    try:
        return json.loads(response.body.decode("utf-8")) if response.body else None
    except (ValueError, RecursionError):
        raise ProtocolError("the answer is not JSON", response.status, code="not_json",
                            request_id=response.headers.get("X-Request-ID"))
