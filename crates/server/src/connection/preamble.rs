//! The PROXY protocol, version 2: what a proxy below HTTP says of the client whose bytes it passes on.
//!
//! It is read from the peers that are named for it and from nobody else, before anything else, and whole or not at all
//! (www.haproxy.org/download/3.0/doc/proxy-protocol.txt, section 2.2). Version 1 is not spoken.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt as _};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Longest rest of a preamble. Addresses take 36 bytes; what proxies add of their own is far below.
const LONGEST: usize = 2048;
/// The type of the checksum.
const CRC32C: u8 = 0x03;

/// Why a preamble is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadPreamble {
    /// The peer sent something else, or not all of it.
    #[error("the peer is named in PROXY_PROTOCOL_FROM and sends no PROXY protocol, version 2")]
    Missing,
    /// It is not as the protocol has it.
    #[error("the PROXY protocol's preamble is malformed")]
    Malformed,
    /// Its checksum is wrong.
    #[error("the PROXY protocol's checksum is wrong")]
    Checksum,
}

/// Reads a preamble. `None`: the proxy speaks for itself, or for a client without an address.
pub(crate) async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Option<SocketAddr>, BadPreamble> {
    let mut head = [0; 16];
    stream.read_exact(&mut head).await.map_err(|_| BadPreamble::Missing)?;
    if head[..12] != SIGNATURE {
        return Err(BadPreamble::Missing);
    }
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if length > LONGEST {
        return Err(BadPreamble::Malformed);
    }
    let mut whole = head.to_vec();
    whole.resize(16 + length, 0);
    stream.read_exact(&mut whole[16..]).await.map_err(|_| BadPreamble::Missing)?;
    parse(&whole)
}

/// The client that a whole preamble names.
fn parse(whole: &[u8]) -> Result<Option<SocketAddr>, BadPreamble> {
    let rest = &whole[16..];
    let malformed = BadPreamble::Malformed;
    let (address, taken) = match (whole[12], whole[13]) {
        (0x20 | 0x21, 0x00) | (0x20, _) => (None, rest.len()),
        (0x21, 0x11) => {
            let fixed: &[u8; 12] = rest.first_chunk().ok_or(malformed)?;
            let ip = Ipv4Addr::new(fixed[0], fixed[1], fixed[2], fixed[3]);
            (Some((ip.into(), [fixed[8], fixed[9]])), 12)
        }
        (0x21, 0x21) => {
            let fixed: &[u8; 36] = rest.first_chunk().ok_or(malformed)?;
            let ip = Ipv6Addr::from(*fixed.first_chunk::<16>().ok_or(malformed)?);
            (Some((ip.to_canonical(), [fixed[32], fixed[33]])), 36)
        }
        // Datagrams and Unix sockets lead here from no proxy that was set up for it.
        _ => return Err(malformed),
    };
    let mut at = 16 + taken;
    while at < whole.len() {
        let field: &[u8; 3] = whole[at..].first_chunk().ok_or(malformed)?;
        let value = at + 3;
        let end = value + usize::from(u16::from_be_bytes([field[1], field[2]]));
        let bytes = whole.get(value..end).ok_or(malformed)?;
        if field[0] == CRC32C {
            let said = u32::from_be_bytes(bytes.try_into().map_err(|_| malformed)?);
            // It was computed over the whole with zeros in its own place.
            let zeroed = [&whole[..value], &[0; 4], &whole[end..]].concat();
            if crc32c(&zeroed) != said {
                return Err(BadPreamble::Checksum);
            }
        }
        at = end;
    }
    Ok(address.map(|(ip, port)| SocketAddr::new(ip, u16::from_be_bytes(port))))
}

/// Castagnoli's checksum, bit by bit: a preamble is short.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| (sum >> 1) ^ (0x82F6_3B78 & (sum & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preamble(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).expect("short").to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, rest].concat()
    }

    fn v4() -> Vec<u8> {
        vec![203, 0, 113, 7, 192, 0, 2, 1, 0x12, 0x34, 0x01, 0xbb]
    }

    async fn reads(bytes: &[u8]) -> Result<Option<SocketAddr>, BadPreamble> {
        let mut stream = bytes;
        let found = read(&mut stream).await;
        if found.is_ok() {
            assert_eq!(stream, b"GET", "what follows is left alone");
        }
        found
    }

    #[tokio::test]
    async fn a_client_is_whom_the_preamble_names() {
        let with = |mut bytes: Vec<u8>| {
            bytes.extend(b"GET");
            bytes
        };
        let client = "203.0.113.7:4660".parse().ok();
        assert_eq!(reads(&with(preamble(0x21, 0x11, &v4()))).await, Ok(client));
        let more = [&v4()[..], &[0x04, 0, 3, 1, 2, 3]].concat();
        assert_eq!(reads(&with(preamble(0x21, 0x11, &more))).await, Ok(client));
        let mut v6 = [0; 36];
        v6[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        v6[32..34].copy_from_slice(&[0, 80]);
        assert_eq!(reads(&with(preamble(0x21, 0x21, &v6))).await, Ok("[2001:db8::]:80".parse().ok()));
        let mut mapped = [0; 36];
        mapped[10..16].copy_from_slice(&[0xff, 0xff, 203, 0, 113, 7]);
        assert_eq!(reads(&with(preamble(0x21, 0x21, &mapped))).await, Ok("203.0.113.7:0".parse().ok()));
        assert_eq!(reads(&with(preamble(0x20, 0x00, &[]))).await, Ok(None));
        assert_eq!(reads(&with(preamble(0x20, 0x11, &v4()))).await, Ok(None));
        assert_eq!(reads(&with(preamble(0x21, 0x00, &[9; 20]))).await, Ok(None));
    }

    #[tokio::test]
    async fn what_is_no_whole_preamble_is_refused() {
        use BadPreamble::{Malformed, Missing};
        let long = [0; LONGEST + 1];
        let beyond = [&v4()[..], &[0x04, 0, 9, 1]].concat();
        let dangling = [&v4()[..], &[0x04]].concat();
        for (bytes, why) in [
            (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), Missing),
            (b"PROXY TCP4 203.0.113.7 192.0.2.1 1 2\r\n".to_vec(), Missing),
            (Vec::new(), Missing),
            (preamble(0x21, 0x11, &v4())[..20].to_vec(), Missing),
            (preamble(0x11, 0x11, &v4()), Malformed),
            (preamble(0x22, 0x11, &v4()), Malformed),
            (preamble(0x21, 0x12, &v4()), Malformed),
            (preamble(0x21, 0x31, &[0; 216]), Malformed),
            (preamble(0x21, 0x11, &v4()[..8]), Malformed),
            (preamble(0x21, 0x21, &v4()), Malformed),
            (preamble(0x21, 0x11, &beyond), Malformed),
            (preamble(0x21, 0x11, &dangling), Malformed),
            (preamble(0x21, 0x11, &long), Malformed),
        ] {
            assert_eq!(reads(&bytes).await, Err(why), "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn a_checksum_is_verified_where_there_is_one() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283, "RFC 3720 appendix B.4's polynomial");
        let mut bytes = preamble(0x21, 0x11, &[&v4()[..], &[CRC32C, 0, 4, 0, 0, 0, 0]].concat());
        let sum = crc32c(&bytes).to_be_bytes();
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&sum);
        assert_eq!(parse(&bytes), Ok("203.0.113.7:4660".parse().ok()));
        bytes[16] ^= 1;
        assert_eq!(parse(&bytes), Err(BadPreamble::Checksum));
    }

    #[test]
    fn no_bytes_make_it_panic() {
        proptest::proptest!(|(mut bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 16..80), command in 0x20_u8..0x22, family in 0_u8..0x32)| {
            (bytes[12], bytes[13]) = (command, family);
            let _ = parse(&bytes);
        });
    }
}
