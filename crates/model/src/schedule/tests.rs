//! Schedules and the times they name.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

const ANCHOR: &str = "2026-01-15T10:00:00Z";

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn read(kind: ScheduleKind, expr: &str, zone: &str) -> Schedule {
    Schedule::parse(kind, Some(expr), zone, at(ANCHOR)).unwrap_or_else(|error| panic!("{expr}: {error}"))
}

fn refusal(kind: ScheduleKind, expr: &str, zone: &str) -> ScheduleError {
    Schedule::parse(kind, Some(expr), zone, at(ANCHOR)).expect_err(expr)
}

/// The times after `after`, without what all have in common.
fn times(schedule: &Schedule, after: &str, count: usize) -> Vec<String> {
    let short = |time: &Timestamp| time.to_string().replace(":00.000000Z", "").replace(".000000Z", "");
    schedule.times_after(at(after), count).iter().map(short).collect()
}

fn cron(expr: &str, zone: &str, after: &str, expected: &[&str]) {
    assert_eq!(
        times(&read(ScheduleKind::Cron, expr, zone), after, expected.len()),
        expected,
        "{expr} in {zone}"
    );
}

fn rrule(expr: &str, zone: &str, after: &str, expected: &[&str]) {
    let found = times(&read(ScheduleKind::Rrule, expr, zone), after, expected.len());
    assert_eq!(found, expected, "{expr} in {zone}");
}

/// The same, and nothing comes after.
fn rrule_whole(expr: &str, zone: &str, expected: &[&str]) {
    let found = times(&read(ScheduleKind::Rrule, expr, zone), "0001-01-01T00:00:00Z", expected.len() + 1);
    assert_eq!(found, expected, "{expr} in {zone}");
}

#[test]
fn sunday_is_0_and_7_and_sun() {
    for sunday in ["0", "7", "sun", "SUN", "0,7", "sun,7"] {
        let expected = ["2026-01-18T08:30", "2026-01-25T08:30"];
        cron(&format!("30 8 * * {sunday}"), "UTC", ANCHOR, &expected);
    }
    cron("0 0 * * sat-sun", "UTC", ANCHOR, &["2026-01-17T00:00", "2026-01-18T00:00", "2026-01-24T00:00"]);
    cron("0 0 * * 5-7", "UTC", ANCHOR, &["2026-01-16T00:00", "2026-01-17T00:00", "2026-01-18T00:00"]);
}

#[test]
fn either_day_is_enough_unless_one_begins_with_a_star() {
    cron("0 0 20 * fri", "UTC", ANCHOR, &["2026-01-16T00:00", "2026-01-20T00:00", "2026-01-23T00:00"]);
    cron("0 0 */10 * fri", "UTC", ANCHOR, &["2026-05-01T00:00", "2026-07-31T00:00"]);
    cron("0 0 * jan,Mar mon", "UTC", ANCHOR, &["2026-01-19T00:00", "2026-01-26T00:00", "2026-03-02T00:00"]);
}

#[test]
fn steps_lists_and_ranges_are_crontab_s() {
    cron("*/25 * * * *", "UTC", ANCHOR, &["2026-01-15T10:25", "2026-01-15T10:50", "2026-01-15T11:00"]);
    cron("50/5 10 * * *", "UTC", ANCHOR, &["2026-01-15T10:50", "2026-01-15T10:55", "2026-01-16T10:50"]);
    cron("15-15/3 12 * * *", "UTC", ANCHOR, &["2026-01-15T12:15", "2026-01-16T12:15"]);
    cron("1,3-5 12 * * *", "UTC", ANCHOR, &["2026-01-15T12:01", "2026-01-15T12:03", "2026-01-15T12:04"]);
    cron("@monthly", "Europe/Berlin", ANCHOR, &["2026-01-31T23:00", "2026-02-28T23:00", "2026-03-31T22:00"]);
}

#[test]
fn a_cron_time_in_a_gap_runs_with_the_offset_before_it() {
    // Berlin skips 02:00 to 03:00 on 29 March 2026.
    cron(
        "30 2 * * *",
        "Europe/Berlin",
        "2026-03-27T12:00:00Z",
        &["2026-03-28T01:30", "2026-03-29T01:30", "2026-03-30T00:30"],
    );
    // What runs in every hour runs once an hour.
    cron(
        "30 * * * *",
        "Europe/Berlin",
        "2026-03-29T00:00:00Z",
        &["2026-03-29T00:30", "2026-03-29T01:30", "2026-03-29T02:30"],
    );
    // Both times of a list are carried out, and an instant once.
    cron(
        "0,30 2,3 * * *",
        "Europe/Berlin",
        "2026-03-29T00:00:00Z",
        &["2026-03-29T01:00", "2026-03-29T01:30", "2026-03-30T00:00"],
    );
    // Beirut skips midnight itself.
    cron("0 0 * * *", "Asia/Beirut", "2026-03-28T12:00:00Z", &["2026-03-28T22:00", "2026-03-29T21:00"]);
    // Samoa skipped a day.
    cron("0 9 * * *", "Pacific/Apia", "2011-12-29T00:00:00Z", &["2011-12-29T19:00", "2011-12-30T19:00"]);
}

#[test]
fn a_cron_time_in_an_overlap_runs_at_the_first_unless_every_hour_runs() {
    // Berlin has 02:00 to 03:00 twice on 25 October 2026.
    cron("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", &["2026-10-25T00:30", "2026-10-26T01:30"]);
    cron(
        "30 * * * *",
        "Europe/Berlin",
        "2026-10-24T23:00:00Z",
        &["2026-10-24T23:30", "2026-10-25T00:30", "2026-10-25T01:30", "2026-10-25T02:30"],
    );
    cron(
        "30 1-4 * * *",
        "Europe/Berlin",
        "2026-10-24T23:00:00Z",
        &["2026-10-24T23:30", "2026-10-25T00:30", "2026-10-25T02:30"],
    );
    // Lord Howe turns back by half an hour.
    cron(
        "45 1 * * *",
        "Australia/Lord_Howe",
        "2026-04-03T20:00:00Z",
        &["2026-04-04T14:45", "2026-04-05T15:15"],
    );
}

#[test]
fn bad_cron_is_refused_with_what_is_right() {
    for (expr, part) in [
        ("* * * *", "5 fields"),
        ("0 * * * * *", "5 fields"),
        ("60 * * * *", "from 0 to 59"),
        ("* 24 * * *", "from 0 to 23"),
        ("* * 0 * *", "from 1 to 31"),
        ("* * * 13 *", "a name from jan to dec"),
        ("* * * * 8", "from 0 to 7"),
        ("* * * * mon-", "is not a day of the week"),
        ("*/0 * * * *", "from 1 to 60"),
        ("*/61 * * * *", "from 1 to 60"),
        ("5-1 * * * *", "goes backwards"),
        ("* * L * *", "rrule"),
        ("* * * * mon#2", "rrule"),
        ("-1 * * * *", "is not a minute"),
        ("+1 * * * *", "is not a minute"),
        ("1,,2 * * * *", "is not a minute"),
        ("१ * * * *", "is not a minute"),
        ("@reboot", "not known"),
        ("0 0 30 2 *", "never fires"),
        ("0 0 31 4,6,9,11 *", "never fires"),
    ] {
        let error = refusal(ScheduleKind::Cron, expr, "UTC");
        assert!(error.message.contains(part), "{expr}: {error}");
        assert_eq!(error.field.loc(), "schedule_expr");
    }
}

#[test]
fn the_examples_of_the_standard_hold() {
    // RFC 5545 section 3.8.5.3, all in New York.
    let start = "DTSTART;TZID=America/New_York:19970902T090000\n";
    let zone = "America/New_York";
    let after = "1997-09-01T00:00:00Z";
    for (rule, expected) in [
        ("FREQ=DAILY;COUNT=10", &["1997-09-02T13:00", "1997-09-03T13:00"][..]),
        ("FREQ=DAILY;INTERVAL=2", &["1997-09-02T13:00", "1997-09-04T13:00"]),
        (
            "FREQ=WEEKLY;INTERVAL=2;WKST=SU;BYDAY=TU,TH",
            &["1997-09-02T13:00", "1997-09-04T13:00", "1997-09-16T13:00"],
        ),
        ("FREQ=MONTHLY;BYDAY=1FR", &["1997-09-05T13:00", "1997-10-03T13:00", "1997-11-07T14:00"]),
        ("FREQ=MONTHLY;BYMONTHDAY=-3", &["1997-09-28T13:00", "1997-10-29T14:00", "1997-11-28T14:00"]),
        ("FREQ=YEARLY;BYDAY=20MO", &["1998-05-18T13:00", "1999-05-17T13:00", "2000-05-15T13:00"]),
        ("FREQ=YEARLY;BYWEEKNO=20;BYDAY=MO", &["1998-05-11T13:00", "1999-05-17T13:00", "2000-05-15T13:00"]),
        (
            "FREQ=YEARLY;INTERVAL=3;BYYEARDAY=1,100,200",
            &["2000-01-01T14:00", "2000-04-09T13:00", "2000-07-18T13:00"],
        ),
        ("FREQ=YEARLY;BYMONTH=3;BYDAY=TH", &["1998-03-05T14:00", "1998-03-12T14:00", "1998-03-19T14:00"]),
        (
            "FREQ=MONTHLY;BYDAY=FR;BYMONTHDAY=13",
            &["1998-02-13T14:00", "1998-03-13T14:00", "1998-11-13T14:00"],
        ),
        (
            "FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-2",
            &["1997-09-29T13:00", "1997-10-30T14:00", "1997-11-27T14:00"],
        ),
        (
            "FREQ=MONTHLY;COUNT=3;BYDAY=TU,WE,TH;BYSETPOS=3",
            &["1997-09-04T13:00", "1997-10-07T13:00", "1997-11-06T14:00"],
        ),
        (
            "FREQ=YEARLY;INTERVAL=4;BYMONTH=11;BYDAY=TU;BYMONTHDAY=2,3,4,5,6,7,8",
            &["1997-11-04T14:00", "2001-11-06T14:00", "2005-11-08T14:00"],
        ),
        ("FREQ=MINUTELY;INTERVAL=90;COUNT=4", &["1997-09-02T13:00", "1997-09-02T14:30", "1997-09-02T16:00"]),
        (
            "FREQ=DAILY;BYHOUR=9,10;BYMINUTE=0,40",
            &["1997-09-02T13:00", "1997-09-02T13:40", "1997-09-02T14:00"],
        ),
        (
            "FREQ=MONTHLY;BYMONTHDAY=15,30;COUNT=5",
            &["1997-09-15T13:00", "1997-09-30T13:00", "1997-10-15T13:00"],
        ),
    ] {
        let schedule = Schedule::parse(
            ScheduleKind::Rrule,
            Some(&format!("{start}RRULE:{rule}")),
            zone,
            at("1997-09-01T00:00:00Z"),
        )
        .unwrap_or_else(|error| panic!("{rule}: {error}"));
        assert_eq!(times(&schedule, after, expected.len()), expected, "{rule}");
    }
}

#[test]
fn the_start_of_the_week_changes_what_every_second_week_is() {
    for (week_start, second) in [("MO", "2026-08-17T09:00"), ("SU", "2026-08-10T09:00")] {
        let rule = format!("DTSTART:20260809T090000Z\nFREQ=WEEKLY;INTERVAL=2;BYDAY=SU,MO;WKST={week_start}");
        let found = times(&read(ScheduleKind::Rrule, &rule, "UTC"), ANCHOR, 2);
        assert_eq!(found, ["2026-08-09T09:00", second], "{week_start}");
    }
}

#[test]
fn a_rule_without_a_start_begins_when_it_was_set() {
    rrule_whole("FREQ=DAILY;COUNT=2", "UTC", &["2026-01-16T10:00", "2026-01-17T10:00"]);
    rrule("RRULE:FREQ=DAILY;BYHOUR=6", "Europe/Berlin", ANCHOR, &["2026-01-16T05:00", "2026-01-17T05:00"]);
    rrule("freq=weekly;byday=th;", "UTC", ANCHOR, &["2026-01-22T10:00", "2026-01-29T10:00"]);
}

#[test]
fn exceptions_count_and_are_left_out() {
    let rule = "DTSTART:20260201T090000\nRRULE:FREQ=DAILY;COUNT=5\nEXDATE:20260202T090000,20260203T080000Z\nEXDATE;VALUE=DATE:20260205";
    rrule_whole(rule, "Europe/Berlin", &["2026-02-01T08:00", "2026-02-04T08:00"]);
}

#[test]
fn until_is_the_last_time() {
    for until in ["20260203T080000Z", "20260203T090000", "2026-02-03T09:00:00+01:00"] {
        let rule = format!("DTSTART:20260201T090000\nRRULE:FREQ=DAILY;UNTIL={until}");
        rrule_whole(&rule, "Europe/Berlin", &["2026-02-01T08:00", "2026-02-02T08:00", "2026-02-03T08:00"]);
    }
    let earlier = "DTSTART:20260201T090000\nRRULE:FREQ=DAILY;UNTIL=20260203";
    rrule_whole(earlier, "Europe/Berlin", &["2026-02-01T08:00", "2026-02-02T08:00"]);
}

#[test]
fn rules_of_less_than_a_day_go_through_both_hours_of_an_overlap() {
    let rule = "DTSTART:20261025T010000\nRRULE:FREQ=HOURLY;COUNT=5";
    rrule_whole(
        rule,
        "Europe/Berlin",
        &["2026-10-24T23:00", "2026-10-25T00:00", "2026-10-25T01:00", "2026-10-25T02:00", "2026-10-25T03:00"],
    );
    let every_other = "DTSTART:20261025T000000\nRRULE:FREQ=HOURLY;INTERVAL=2;COUNT=3";
    rrule_whole(every_other, "Europe/Berlin", &["2026-10-24T22:00", "2026-10-25T00:00", "2026-10-25T03:00"]);
}

#[test]
fn a_folded_line_is_one_line() {
    rrule_whole("RRULE:FREQ=DAILY;\r\n COUNT=1\r\n", "UTC", &["2026-01-16T10:00"]);
}

#[test]
fn bad_rules_are_refused_with_what_is_right() {
    for (expr, part) in [
        ("BYDAY=MO", "needs FREQ"),
        ("FREQ=FORTNIGHTLY", "write one of YEARLY"),
        ("FREQ", "a rule has parts"),
        ("FREQ=DAILY;FREQ=DAILY", "twice"),
        ("FREQ=DAILY;INTERVAL=0", "from 1 to"),
        ("FREQ=DAILY;INTERVAL=-1", "from 1 to"),
        ("FREQ=DAILY;INTERVAL=99999999999999999999", "from 1 to"),
        ("FREQ=DAILY;COUNT=2;UNTIL=20300101", "exclude each other"),
        ("FREQ=DAILY;UNTIL=soon", "not a time"),
        ("FREQ=DAILY;BYDAY=2MO", "MONTHLY or FREQ=YEARLY"),
        ("FREQ=MONTHLY;BYDAY=0MO", "from 1 to 53"),
        ("FREQ=MONTHLY;BYDAY=€", "day of the week"),
        ("FREQ=MONTHLY;BYDAY=54MO", "from 1 to 53"),
        ("FREQ=YEARLY;BYWEEKNO=20;BYDAY=2MO", "exclude each other"),
        ("FREQ=MONTHLY;BYMONTHDAY=32", "from 1 to 31"),
        ("FREQ=MONTHLY;BYMONTHDAY=", "from 1 to 31"),
        ("FREQ=DAILY;BYSECOND=60", "from 0 to 59"),
        ("FREQ=DAILY;BYSETPOS=1", "chooses among"),
        ("FREQ=DAILY;BYEASTER=0", "not known"),
        ("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30", "never fires"),
        ("FREQ=SECONDLY;BYHOUR=3;BYMONTH=2;BYMONTHDAY=30", "never fires"),
        ("FREQ=DAILY;UNTIL=20200101", "never fires"),
        ("DTSTART:20200101T000000Z\nFREQ=DAILY;COUNT=3", "never fires"),
        ("FREQ=WEEKLY;BYDAY=MO;BYMONTHDAY=1;COUNT=100000", "write UNTIL"),
        ("DTSTART;TZID=Europe/Paris:20260101T000000\nFREQ=DAILY", "the same zone in both"),
        ("DTSTART:soon\nFREQ=DAILY", "not a time"),
        ("DTSTART:20260101T000000Z", "there is no rule"),
        ("FREQ=DAILY\nFREQ=DAILY", "twice"),
        ("FREQ=DAILY\nRDATE:20300101T000000Z", "not known"),
    ] {
        let error = refusal(ScheduleKind::Rrule, expr, "UTC");
        assert!(error.message.contains(part), "{expr}: {error}");
    }
}

#[test]
fn once_is_a_time_to_come() {
    let parse = |expr, zone| Schedule::parse(ScheduleKind::Once, Some(expr), zone, at(ANCHOR));
    let first = |expr, zone| {
        parse(expr, zone).expect("a schedule").next_after(at(ANCHOR)).expect("a time").to_string()
    };

    assert_eq!(first("2026-01-15T11:00:00.25+01:00", "UTC"), "2026-01-15T10:00:00.250000Z");
    assert_eq!(first("2026-07-01T09:00", "America/New_York"), "2026-07-01T13:00:00.000000Z");
    assert_eq!(first("2026-03-29T02:30", "Europe/Berlin"), "2026-03-29T01:30:00.000000Z");
    assert_eq!(first("2026-10-25T02:30", "Europe/Berlin"), "2026-10-25T00:30:00.000000Z");
    let once = parse("2026-01-15T11:00:00Z", "UTC").expect("a schedule");
    assert_eq!(once.next_after(at("2026-01-15T11:00:00Z")), None);
    for (expr, part) in
        [("2026-01-15T10:00:00Z", "has passed"), ("2026-01-16", "no time of day"), ("tomorrow", "ISO 8601")]
    {
        let error = parse(expr, "UTC").expect_err(expr);
        assert!(error.message.contains(part), "{expr}: {error}");
    }
}

#[test]
fn what_others_trigger_has_no_times() {
    for (kind, expr) in [
        (ScheduleKind::Event, Some("plate.read")),
        (ScheduleKind::Condition, Some("event")),
        (ScheduleKind::Manual, None),
    ] {
        let schedule = Schedule::parse(kind, expr, "UTC", at(ANCHOR)).expect("a schedule");
        assert_eq!(schedule.next_after(at(ANCHOR)), None);
    }
    assert!(Schedule::parse(ScheduleKind::Manual, Some("0 0 * * *"), "UTC", at(ANCHOR)).is_err());
    assert!(Schedule::parse(ScheduleKind::Event, Some(&"x".repeat(101)), "UTC", at(ANCHOR)).is_err());
    assert!(Schedule::parse(ScheduleKind::Event, Some("a\0b"), "UTC", at(ANCHOR)).is_err());
    for kind in ScheduleKind::ALL.iter().filter(|kind| **kind != ScheduleKind::Manual) {
        for missing in [None, Some(""), Some("  ")] {
            let error = Schedule::parse(*kind, missing, "UTC", at(ANCHOR)).expect_err("nothing");
            assert!(error.message.contains("needs a schedule_expr"), "{error}");
        }
    }
}

#[test]
fn zones_are_those_of_the_database_as_it_spells_them() {
    for zone in
        ["UTC", "Etc/UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Asia/Kathmandu", "US/Eastern"]
    {
        assert_eq!(read(ScheduleKind::Cron, "0 0 * * *", zone).zone(), zone);
    }
    for (zone, part) in [
        ("europe/berlin", "is written \"Europe/Berlin\""),
        ("Mars/Olympus", "not a zone"),
        ("Etc/Unknown", "not a zone"),
        ("", "not a zone"),
        ("+01:00", "not a zone"),
        ("../etc/passwd", "not a zone"),
        ("CET-1CEST", "not a zone"),
    ] {
        let error = refusal(ScheduleKind::Cron, "0 0 * * *", zone);
        assert_eq!(error.field, Field::Zone);
        assert!(error.message.contains(part), "{zone}: {error}");
    }
}

#[test]
fn a_distant_start_costs_nothing() {
    let began = Instant::now();
    for rule in [
        "FREQ=SECONDLY;INTERVAL=30",
        "FREQ=MINUTELY;INTERVAL=7",
        "FREQ=HOURLY;INTERVAL=5",
        "FREQ=DAILY;INTERVAL=3",
    ] {
        let schedule =
            read(ScheduleKind::Rrule, &format!("DTSTART:00010101T000000Z\nRRULE:{rule}"), "Europe/Berlin");
        assert_eq!(schedule.times_after(at(ANCHOR), 100).len(), 100, "{rule}");
    }
    // Two thousand years of seconds would take minutes; a bound that only a search through them breaks.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn an_expression_has_a_greatest_length() {
    let long = format!("FREQ=DAILY;BYMONTHDAY={}1", "1,".repeat(LONGEST_EXPRESSION));
    assert!(refusal(ScheduleKind::Rrule, &long, "UTC").message.contains("bytes"));
    let many = format!("FREQ=DAILY\nEXDATE:{}20300101", "20300101,".repeat(800));
    read(ScheduleKind::Rrule, &many, "UTC");
}

const ZONES: [&str; 6] =
    ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Beirut", "Africa/Casablanca"];

proptest! {
    /// Whatever the text, an answer comes; and a schedule gives the same times in one search and in many.
    #[test]
    fn any_text_is_read_or_refused(text in "[A-Z0-9=;,:*/@ \n-]{0,80}", zone in 0..ZONES.len()) {
        for kind in [ScheduleKind::Cron, ScheduleKind::Rrule, ScheduleKind::Once] {
            let _ = Schedule::parse(kind, Some(&text), ZONES[zone], at(ANCHOR));
        }
    }

    #[test]
    fn times_rise_and_do_not_depend_on_where_the_search_begins(
        minute in 0..60u32, hour in prop::sample::select(vec!["*", "2", "1-3", "*/2", "0,2", "2,3"]),
        step in 1..40u32, zone in 0..ZONES.len(), start in 1_700_000_000i64..1_900_000_000,
    ) {
        let after = Timestamp::from_seconds(start);
        for (kind, expr) in [
            (ScheduleKind::Cron, format!("{minute}/{step} {hour} * * *")),
            (ScheduleKind::Rrule, format!("FREQ=MINUTELY;INTERVAL={step}")),
            (ScheduleKind::Rrule, format!("FREQ=HOURLY;INTERVAL={step};BYMINUTE={minute},7")),
            (ScheduleKind::Rrule, format!("FREQ=DAILY;INTERVAL={step};BYHOUR=2,3;BYSETPOS=-1")),
        ] {
            let schedule = Schedule::parse(kind, Some(&expr), ZONES[zone], after).expect("a schedule");
            let all = schedule.times_after(after, 40);
            prop_assert!(all.is_sorted_by(|a, b| a < b), "{expr}: {all:?}");
            let mut now = after;
            for expected in all {
                now = schedule.next_after(now).expect("a time");
                prop_assert_eq!(now, expected, "{} in {}", expr, ZONES[zone]);
            }
        }
    }
}
