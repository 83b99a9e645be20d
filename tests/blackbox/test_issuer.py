"""Who issues tokens: an address, and what happens to tokens when it changes."""

import unittest

from support import Server, token_parts
from test_directory import HELLO, free_port

METADATA = "/.well-known/oauth-authorization-server"


class TheIssuer(unittest.TestCase):
    """Servers with and without an address of their own."""

    def test_without_a_setting_it_is_the_listener_and_tokens_and_metadata_agree(self):
        with Server(HELLO) as server, server.http() as http:
            told = http.get(METADATA).json()
            self.assertEqual(told["issuer"], server.url)
            self.assertEqual(token_parts(server.login())[1]["iss"], server.url)
            self.assertEqual(told["token_endpoint"], server.url + "/oauth/token")

    def test_with_a_setting_it_is_that_and_its_host_is_answered_to(self):
        with Server(HELLO, variables={"PUBLIC_URL": "https://robot.lab.example/"}) as server, server.http() as http:
            told = http.get(METADATA, headers={"Host": "robot.lab.example"})
            self.assertEqual(told.status_code, 200, told.text)
            self.assertEqual(told.json()["issuer"], "https://robot.lab.example")
            self.assertEqual(told.json()["jwks_uri"], "https://robot.lab.example/oauth/jwks")
            self.assertEqual(token_parts(server.login())[1]["iss"], "https://robot.lab.example")
            self.assertEqual(http.get(METADATA, headers={"Host": "evil.example"}).status_code, 400)

    def test_tokens_stay_good_when_the_address_changes(self):
        for more in ({}, {"JWT_SECRET_KEY": "Grackle-77-osprey-19-wombat-42-heron"}):
            with Server(HELLO, listen="127.0.0.1:%d" % free_port(), variables=more) as server:
                tokens = [server.login()]
                server.listen = "127.0.0.1:%d" % free_port()
                server.restart()
                tokens.append(server.login())
                server.variables["PUBLIC_URL"] = "https://robot.lab.example"
                server.restart()
                tokens.append(server.login())

                self.assertEqual(len({token_parts(token)[1]["iss"] for token in tokens}), 3)
                for token in tokens:
                    with server.http(token) as http:
                        self.assertEqual(http.get("/auth/me").status_code, 200)

    def test_an_address_that_is_none_stops_the_start(self):
        for text in ["robot.lab.example", "http://robot.lab.example", "https://robot.lab.example/path", "https://a@b.example",
                     "https://robot.lab.example?x=1", "https://", "ftp://robot.lab.example", "https://robot.lab.example#x",
                     "https://r\u00f6bot.example", "https://%s" % ("a" * 300)]:
            server = Server(HELLO, variables={"PUBLIC_URL": text})
            try:
                code, said = server.refused()
                self.assertNotEqual(code, 0, text)
                self.assertIn("PUBLIC_URL", said)
            finally:
                server.close()

    def test_a_name_is_published_once(self):
        with Server(HELLO) as server:
            for _ in range(3):
                server.listen = "127.0.0.1:%d" % free_port()
                server.restart()
            rows = [row for row in server.audit(action="issuer.published")]
            self.assertEqual(len(rows), 4)
            before = server.url
            server.listen = before.partition("://")[2]
            server.restart()
            self.assertEqual(len(server.audit(action="issuer.published")), 4, "a known name is not published again")


if __name__ == "__main__":
    unittest.main()
