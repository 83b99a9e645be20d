//! Programs that name themselves in `User-Agent`. A sign, not a proof: one option changes the name, and an honest scan by the
//! owner has it too. It never refuses anything; it makes another hit of the same request certain.

/// Names as the programs send them, lower case.
const NAMES: [&str; 34] = [
    "sqlmap",
    "nikto",
    "nessus",
    "openvas",
    "acunetix",
    "netsparker",
    "invicti",
    "wpscan",
    "dirbuster",
    "gobuster",
    "dirb/",
    "feroxbuster",
    "ffuf",
    "wfuzz",
    "arachni",
    "w3af",
    "skipfish",
    "zgrab",
    "masscan",
    "nmap",
    "nuclei",
    "wapiti",
    "havij",
    "commix",
    "xsser",
    "whatweb",
    "burpcollaborator",
    "owasp zap",
    "zaproxy",
    "jaeles",
    "joomscan",
    "fimap",
    "sqlninja",
    "httprecon",
];

/// Bytes that are read. Programs say their name early; a bound keeps the look cheap.
const HEAD: usize = 200;

/// The name that a `User-Agent` carries, if it is that of a scanner.
pub fn named(user_agent: &[u8]) -> Option<&'static str> {
    let head = &user_agent[..user_agent.len().min(HEAD)];
    // "nmap" in a word is another word.
    let begins = |index: usize| index == 0 || !head[index - 1].is_ascii_alphanumeric();
    (0..head.len()).filter(|index| begins(*index)).find_map(|index| {
        let (rest, initial) = (&head[index..], head[index].to_ascii_lowercase());
        NAMES.into_iter().find(|name| {
            let name = name.as_bytes();
            initial == name[0] && rest.get(..name.len()).is_some_and(|part| part.eq_ignore_ascii_case(name))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scanners_are_known_by_name_and_browsers_and_clients_are_not() {
        assert_eq!(named(b"sqlmap/1.7.2#stable (https://sqlmap.org)"), Some("sqlmap"));
        assert_eq!(named(b"Mozilla/5.00 (Nikto/2.1.6) (Evasions:None) (Test:000001)"), Some("nikto"));
        assert_eq!(
            named(b"Mozilla/5.0 (compatible; Nmap Scripting Engine; https://nmap.org/book/nse.html)"),
            Some("nmap")
        );
        for honest in [
            "",
            "-",
            "curl/8.5.0",
            "interlock-python/0.1",
            "Mozilla/5.0 (X11; Linux x86_64) Firefox/128.0",
            "unmapped/1.0",
        ] {
            assert_eq!(named(honest.as_bytes()), None, "{honest}");
        }
    }
}
