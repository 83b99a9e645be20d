//! Server-sent events from bytes (WHATWG HTML, section 9.2). Pure: no connection, no time.
//!
//! Bounded: a line or an event over the limit is an error, so that no server can fill our memory.

/// Longest line and longest data of one event, in bytes.
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Event {
    /// The last `id` seen.
    pub(crate) id: String,
    /// Lines of `data`, joined.
    pub(crate) data: String,
}

/// A line or an event is too long, or is not UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Malformed {
    TooLong,
    NotText,
}

/// Takes bytes in any portions, gives events.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    after_return: bool,
    id: String,
    data: String,
    has_data: bool,
}

impl Parser {
    /// Takes the next bytes. Events that they complete are added to `events`.
    pub(crate) fn feed(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Result<(), Malformed> {
        for &byte in bytes {
            match byte {
                b'\n' if self.after_return => self.after_return = false,
                b'\n' | b'\r' => {
                    self.after_return = byte == b'\r';
                    self.end_line(events)?;
                }
                _ => {
                    self.after_return = false;
                    if self.line.len() >= MAX_BYTES {
                        return Err(Malformed::TooLong);
                    }
                    self.line.push(byte);
                }
            }
        }
        Ok(())
    }

    fn end_line(&mut self, events: &mut Vec<Event>) -> Result<(), Malformed> {
        let line = std::mem::take(&mut self.line);
        let line = std::str::from_utf8(&line).map_err(|_| Malformed::NotText)?;
        if line.is_empty() {
            if self.has_data {
                events.push(Event { id: self.id.clone(), data: std::mem::take(&mut self.data) });
            }
            self.has_data = false;
            return Ok(());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" if !value.contains('\0') => value.clone_into(&mut self.id),
            "data" => {
                if self.data.len() + value.len() >= MAX_BYTES {
                    return Err(Malformed::TooLong);
                }
                if self.has_data {
                    self.data.push('\n');
                }
                self.data.push_str(value);
                self.has_data = true;
            }
            // `event` repeats what the data says; comments keep the connection alive.
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(parts: &[&[u8]]) -> Result<Vec<Event>, Malformed> {
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        for part in parts {
            parser.feed(part, &mut events)?;
        }
        Ok(events)
    }

    fn event(id: &str, data: &str) -> Event {
        Event { id: id.to_owned(), data: data.to_owned() }
    }

    #[test]
    fn events_survive_every_cut_and_every_line_end() {
        for text in [
            "id: 7\nevent: log\ndata: a\ndata:b\n\n: ping\n\ndata: c\n\n",
            "id: 7\r\ndata: a\r\ndata: b\r\n\r\ndata: c\r\n\r\n",
            "id:7\rdata:a\rdata:b\r\rdata:c\r\r",
        ] {
            for cut in 0..=text.len() {
                let (left, right) = text.as_bytes().split_at(cut);

                assert_eq!(
                    parse(&[left, right]),
                    Ok(vec![event("7", "a\nb"), event("7", "c")]),
                    "{text:?} at {cut}"
                );
            }
        }
    }

    #[test]
    fn an_event_that_the_connection_cut_off_is_not_given() {
        assert_eq!(parse(&[b"id: 1\ndata: a\n\nid: 2\ndata: half"]), Ok(vec![event("1", "a")]));
    }

    #[test]
    fn endless_lines_and_endless_events_are_refused() {
        assert_eq!(parse(&[&vec![b'x'; MAX_BYTES + 1]]), Err(Malformed::TooLong));

        let mut line = b"data: ".to_vec();
        line.extend(vec![b'x'; MAX_BYTES / 2]);
        line.push(b'\n');
        assert_eq!(parse(&[&line, &line, &line]), Err(Malformed::TooLong));
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        assert_eq!(parse(&[b"data: \xff\n\n"]), Err(Malformed::NotText));
    }
}
