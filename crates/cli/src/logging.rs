//! The log: one JSON object a line, or `time - name - level - message` for people. Always on standard error.
//!
//! Security events keep the members that operators search for. JSON escaping makes it impossible to
//! forge a line through a field.

mod lines;

use std::fmt::{self, Write as _};

use interlock_model::Clock as _;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::ambient::SystemClock;

pub(crate) use lines::flush;

/// Starts logging. Call it once.
pub(crate) fn start(level: Level, text: bool) {
    // Libraries speak only when something is wrong.
    let targets = Targets::new()
        .with_default(LevelFilter::from_level(level.min(Level::WARN)))
        .with_target("interlock", level)
        .with_target("interlock_device", level)
        .with_target("interlock_engine", level)
        .with_target("interlock_server", level)
        .with_target("interlock_store", level)
        .with_target("security", level)
        .with_target("access", level)
        .with_target("device", level);
    let writer = lines::Out::start();
    let result = if text {
        tracing_subscriber::registry()
            .with(targets)
            .with(tracing_subscriber::fmt::layer().with_writer(writer).event_format(Line))
            .try_init()
    } else {
        tracing_subscriber::registry()
            .with(targets)
            .with(tracing_subscriber::fmt::layer().with_writer(writer).event_format(Json))
            .try_init()
    };
    // A second call in one process keeps the first subscriber.
    drop(result);
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARNING",
        Level::INFO => "INFO",
        _ => "DEBUG",
    }
}

#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        self.0.insert(field.name().to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, Value::from(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Value::from(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, Value::from(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, Value::from(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::from(value));
    }

    /// With what caused it: the first sentence of "use the database" says too little.
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let causes = std::iter::successors(Some(value), |error| error.source());
        let text = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
        self.put(field, Value::String(text));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        // `details` is JSON already; as an object it can be searched.
        let value = if field.name() == "details" {
            serde_json::from_str(&text).unwrap_or(Value::String(text))
        } else {
            Value::String(text)
        };
        self.put(field, value);
    }
}

/// Writes the members of a line in the order in which they come: for the line of each request, which is more than all others.
struct Members<'a, 'w>(&'a mut Writer<'w>, fmt::Result);

impl Members<'_, '_> {
    fn put(&mut self, field: &Field, value: impl FnOnce(&mut Writer<'_>) -> fmt::Result) {
        if self.1.is_ok() {
            self.1 = write!(self.0, ",\"{}\":", field.name()).and_then(|()| value(self.0));
        }
    }
}

/// A JSON string of what is written to it.
struct Quoted<'a, 'w>(&'a mut Writer<'w>);

impl fmt::Write for Quoted<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if text.bytes().all(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\') {
            return self.0.write_str(text);
        }
        let quoted = Value::from(text).to_string();
        self.0.write_str(&quoted[1..quoted.len() - 1])
    }
}

fn quote(writer: &mut Writer<'_>, text: fmt::Arguments<'_>) -> fmt::Result {
    writer.write_char('"')?;
    Quoted(writer).write_fmt(text)?;
    writer.write_char('"')
}

impl Visit for Members<'_, '_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, |writer| quote(writer, format_args!("{value}")));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, |writer| write!(writer, "{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, |writer| write!(writer, "{value}"));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no number for infinity.
        self.put(
            field,
            |writer| {
                if value.is_finite() { write!(writer, "{value}") } else { writer.write_str("null") }
            },
        );
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, |writer| write!(writer, "{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, |writer| quote(writer, format_args!("{value:?}")));
    }
}

struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if event.metadata().target() == "access" {
            let level = level_name(*event.metadata().level());
            write!(
                writer,
                "{{\"timestamp\":\"{}\",\"level\":\"{level}\",\"target\":\"access\"",
                SystemClock.now()
            )?;
            let mut members = Members(&mut writer, Ok(()));
            event.record(&mut members);
            members.1?;
            return writer.write_str("}\n");
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut line = Map::new();
        line.insert("timestamp".to_owned(), Value::String(SystemClock.now().to_string()));
        line.insert("level".to_owned(), Value::from(level_name(*event.metadata().level())));
        line.insert("target".to_owned(), Value::from(event.metadata().target()));
        if event.metadata().target() == "security" {
            for name in ["event_type", "agent_id", "client_ip", "user_agent", "request_id", "details"] {
                line.insert(name.to_owned(), Value::Null);
            }
        }
        line.append(&mut fields.0);
        writeln!(writer, "{}", Value::Object(line))
    }
}

struct Line;

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let message = match fields.0.remove("message").or_else(|| fields.0.get("event_type").cloned()) {
            Some(Value::String(text)) => text,
            _ => String::new(),
        };
        let mut text = message;
        for (name, value) in fields.0.iter().filter(|(name, value)| *name != "event_type" && !value.is_null())
        {
            let _ = write!(text, " {name}={value}");
        }
        let clean: String = text.trim_start().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let metadata = event.metadata();
        writeln!(
            writer,
            "{} - {} - {} - {clean}",
            SystemClock.now(),
            metadata.target(),
            level_name(*metadata.level())
        )
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What is logged with these fields, as a reader of JSON finds it.
    fn logged(say: impl FnOnce()) -> Vec<Value> {
        #[derive(Clone, Default)]
        struct Kept(Arc<Mutex<Vec<u8>>>);
        impl std::io::Write for Kept {
            fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
                self.0.lock().expect("lock").extend_from_slice(text);
                Ok(text.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let kept = Kept::default();
        let sink = kept.clone();
        let layer = tracing_subscriber::fmt::layer().with_writer(move || sink.clone()).event_format(Json);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), say);
        let text = String::from_utf8(kept.0.lock().expect("lock").clone()).expect("UTF-8");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    #[test]
    fn the_line_of_a_request_is_json_whatever_its_fields_hold() {
        let odd = "a\"b\\c\nd\u{1}\u{2028}é{}";
        let lines = logged(|| {
            tracing::info!(target: "access", method = "GET", status = 200_u16, below = -1_i64, duration_ms = 0.25_f64,
                endless = f64::INFINITY, kept = true, user_agent = odd, client_ip = %odd, listed = ?[odd]);
        });

        let [line] = lines.as_slice() else { panic!("one line, not {}", lines.len()) };
        assert_eq!((&line["level"], &line["target"]), (&Value::from("INFO"), &Value::from("access")));
        assert_eq!(
            (&line["method"], &line["status"], &line["below"]),
            (&"GET".into(), &200.into(), &(-1).into())
        );
        assert_eq!(
            (&line["duration_ms"], &line["endless"], &line["kept"]),
            (&0.25.into(), &Value::Null, &true.into())
        );
        assert_eq!((&line["user_agent"], &line["client_ip"]), (&odd.into(), &odd.into()));
        assert_eq!(line["listed"], format!("{:?}", [odd]));
        assert!(line["timestamp"].as_str().is_some_and(|at| at.ends_with('Z')));
    }
}
