//! Quantities: exact where decimals are exact, refused where they are not what the field measures.

use std::collections::BTreeMap;

use interlock_model::unit::{BadQuantity, convert, find, table};
use proptest::prelude::*;

#[test]
fn usual_conversions_are_exact() {
    let cases = [
        ("0.2 mL", "uL", 200.0),
        ("50 mL", "µL", 50_000.0),
        ("50ml", "uL", 50_000.0),
        ("1.1 L", "mL", 1_100.0),
        ("0.3 µL", "nL", 300.0),
        ("0.3 μL", "nL", 300.0),
        ("300 uL", "L", 0.0003),
        ("1e-3 L", "uL", 1_000.0),
        ("+2.5E2 ul", "mL", 0.25),
        (".5 mL", "uL", 500.0),
        ("  7  uL  ", "uL", 7.0),
        ("-3 mm", "um", -3_000.0),
        ("-0 mm", "um", 0.0),
        ("1 in", "mm", 25.4),
        ("1.5 h", "s", 5_400.0),
        ("90 s", "min", 1.5),
        ("100 ms", "s", 0.1),
        ("2 d", "h", 48.0),
        ("25 °C", "K", 298.15),
        ("25 degC", "Cel", 25.0),
        ("298.15 K", "°C", 25.0),
        ("273.1501 K", "degC", 0.0001),
        ("0 K", "degC", -273.15),
        ("98.6 °F", "°C", 37.0),
        ("-40 degC", "degF", -40.0),
        ("1 mM", "uM", 1_000.0),
        ("0.5 M", "mmol/L", 500.0),
        ("1 mg/mL", "ng/uL", 1_000.0),
        ("12.5 %", "1", 0.125),
        ("50%", "%", 50.0),
        ("3000 rpm", "rev/s", 50.0),
        ("1 rpm", "deg/s", 6.0),
        ("1 mL/min", "uL/s", 16.666_666_666_7),
        ("6 mL/h", "uL/min", 100.0),
        ("1 deg", "rad", 0.017_453_292_519_9),
        ("1.5 bar", "kPa", 150.0),
        ("1013.25 mbar", "atm", 1.0),
        ("760 Torr", "atm", 1.0),
        ("1 psi", "Pa", 6_894.757_293_17),
        ("1000 x g", "[g]", 1_000.0),
        ("5 kV", "mV", 5_000_000.0),
        ("4.7 kΩ", "Ohm", 4_700.0),
        ("600 mm/min", "mm/s", 10.0),
        ("2 N·m", "mNm", 2_000.0),
        ("7.4 pH", "[pH]", 7.4),
        ("0.123456789012345678 mL", "mL", 0.123_456_789_012_345_68),
    ];

    for (text, unit, wanted) in cases {
        let found = convert(text, unit).unwrap_or_else(|error| panic!("{text} in {unit}: {error}"));
        assert_eq!(found.to_bits(), f64::to_bits(wanted), "{text} in {unit} is {found}, not {wanted}");
    }
}

#[test]
fn a_refusal_names_the_dimension_and_an_example() {
    let cases = [
        ("10", "uL", "must name its unit, such as \"10 µL\" for a volume"),
        ("", "uL", "must be a volume: a decimal number and a unit, such as \"10 µL\""),
        ("uL", "uL", "must be a volume: a decimal number and a unit, such as \"10 µL\""),
        ("10 foo", "uL", "must be a volume in a known unit, such as \"10 µL\""),
        ("10 mm", "uL", "must be a volume, such as \"10 µL\", not a length"),
        ("10 mM", "mm", "must be a length, such as \"10 mm\", not a concentration"),
        ("10 s", "degC", "must be a temperature, such as \"10 °C\", not a time"),
        ("10", "1", "must name its unit, such as \"10 %\" for a ratio"),
        ("1e999 mL", "uL", "must be a volume within the range of numbers, such as \"10 µL\""),
        ("10 mL", "parsec", "its unit is not in the table of units"),
    ];

    for (text, unit, message) in cases {
        assert_eq!(convert(text, unit).expect_err(text).to_string(), message, "{text} in {unit}");
    }
}

#[test]
fn only_plain_decimal_numbers_are_read() {
    let refused = [
        "nan mL",
        "NaN mL",
        "inf mL",
        "-inf mL",
        "infinity mL",
        "0x10 mL",
        "0b1 mL",
        "1_000 mL",
        "1,5 mL",
        "1.2.3 mL",
        "5. mL",
        ". mL",
        "-- 5 mL",
        "+-5 mL",
        "- 5 mL",
        "−5 mL",
        "1e mL",
        "1e+ mL",
        "1 000 mL",
        "1/2 mL",
        "٣ mL",
        "5 m L",
        "5 ML",
        "1e308 L",
        "1e-320 pL",
        "1e-400 mL",
        "5 mL 3",
        "1 h 30 min",
        "5 C",
    ];

    for text in refused {
        assert!(convert(text, "pL").is_err() || text == "1e-320 pL", "{text}");
        assert!(convert(text, "uL").is_err() || text == "1e308 L", "{text}");
    }
    assert!(convert("0e999 mL", "uL") == Ok(0.0), "zero has any exponent");
    assert!(convert(&format!("{} mL", "1".repeat(100)), "uL").is_err(), "too long");
}

#[test]
fn every_spelling_means_one_unit() {
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    for unit in table() {
        assert_eq!(find(unit.code), Some(unit));
        assert_eq!(find(unit.symbol), Some(unit), "{}", unit.symbol);
        for spelling in unit.spellings().chain([unit.code]) {
            assert_eq!(seen.insert(spelling, unit.code), None, "{spelling} is also {}", unit.code);
            assert_eq!(find(spelling), Some(unit), "{spelling}");
        }
    }
    assert!(seen.len() > 250);
}

#[test]
fn every_example_in_a_refusal_is_accepted() {
    for unit in table() {
        let refusal = convert("10", unit.code).expect_err("no unit").to_string();
        let example = refusal.split('"').nth(1).expect("an example");
        assert!(convert(example, unit.code).is_ok(), "{example}");
    }
}

#[test]
fn the_units_that_people_use_are_known() {
    let usual = "µL uL ul mL ml L l nL mm cm m um µm nm s ms min h d degC °C Cel K g mg ug µg kg M mM uM µM nM mol/L % rpm Hz kHz V mV \
                 A mA W Pa kPa bar mbar mm/s uL/s µL/s mL/min uL/min deg ° rad N degF psi";
    for code in usual.split_whitespace() {
        assert!(find(code).is_some(), "{code}");
    }
    for code in ["", " ", "UL", "ML", "Mm", "C", "kelvins?", "uu", "µ"] {
        assert!(find(code).is_none(), "{code}");
    }
}

proptest! {
    #[test]
    fn any_text_is_a_quantity_or_an_error(text in "\\PC{0,80}", unit in "\\PC{0,6}") {
        let _ = convert(&text, &unit);
        let _ = convert(&text, "uL");
    }

    #[test]
    fn there_and_back_is_the_same_number(
        value in -1e9..1e9_f64, from in 0..table().count(), to in 0..table().count(),
    ) {
        let (from, to) = (table().nth(from).expect("counted"), table().nth(to).expect("counted"));
        match convert(&format!("{value} {}", from.code), to.code) {
            Ok(there) => {
                prop_assert_eq!(from.dimension, to.dimension);
                let back = convert(&format!("{there:e} {}", to.code), from.code).expect("the same dimension");
                // An offset loses the digits below it.
                prop_assert!((back - value).abs() <= 1e-10 * value.abs().max(1e4), "{} {} {}", value, there, back);
            }
            Err(error) => prop_assert_eq!(error, BadQuantity::OtherDimension {
                dimension: to.dimension,
                unit: if to.code == "1" { "%" } else { to.symbol },
                found: from.dimension,
            }),
        }
    }

    #[test]
    fn decimals_move_exactly(digits in 0_u32..1_000_000_000, exponent in 0_usize..7) {
        let metres = digits.to_string();
        let millimetres = format!("{metres}e-{exponent}").parse::<f64>().expect("a number");
        let nanometres = format!("{metres}e{}", 6_i32 - i32::try_from(exponent).expect("small")).parse::<f64>().expect("a number");

        prop_assert_eq!(convert(&format!("{millimetres} mm"), "nm"), Ok(nanometres));
    }

    #[test]
    fn a_refusal_never_repeats_the_text(secret in "[a-z]{9}", number in 1_000_000_u32..9_999_999) {
        for text in [format!("{number} {secret}"), secret.clone(), number.to_string(), format!("{number} mm")] {
            let message = convert(&text, "uL").expect_err("not a volume").to_string();
            prop_assert!(!message.contains(&secret) && !message.contains(&number.to_string()), "{}", message);
        }
    }
}
