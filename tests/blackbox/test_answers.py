"""What answers say of themselves: each route of the document, with a type, and a character set where it is text."""

import re
import unittest

from lab import LAB
from support import Server

JSON = {"application/json", "application/problem+json", "application/jwk-set+json"}
"""UTF-8 by definition (RFC 8259 section 8.1); a character set has no meaning there."""


class Types(unittest.TestCase):
    def test_every_answer_has_a_type_and_texts_have_a_character_set(self):
        with Server(LAB, variables={"SECURITY_CONTACT": "mailto:security@lab.example"}) as server:
            token = server.token("admin")
            with server.http(token) as http:
                paths = http.get("/openapi.json").json()["paths"]
                asked = 0
                for path, operations in paths.items():
                    if "get" not in operations or path.endswith("/events"):
                        continue
                    answer = http.get(re.sub(r"\{[^}]*\}", "00000000-0000-0000-0000-000000000001", path))
                    asked += 1
                    kind, _, parameters = answer.headers.get("content-type", "").partition(";")
                    with self.subTest(path=path, status=answer.status_code, kind=kind):
                        if answer.status_code < 300 or answer.content:
                            self.assertTrue(kind)
                        if kind in JSON:
                            self.assertIsInstance(answer.json(), (dict, list))
                        elif kind:
                            self.assertTrue(kind.startswith(("text/", "image/")), kind)
                            self.assertEqual("charset=utf-8" in parameters.lower(), kind.startswith("text/"), parameters)
                self.assertGreater(asked, 20)


if __name__ == "__main__":
    unittest.main()
