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
        let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
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
