//! Units of measure: a closed table with conversion.
//!
//! Answers what "0.2 mL" is in a field that is declared in µL, and refuses what is not a volume. Codes are those of UCUM
//! (<https://ucum.org/ucum>, case-sensitive) where it has one. Never guesses: a text without a unit is refused, because a guess
//! of the wrong unit moves a robot a thousand times too far.

use std::fmt;

/// Longest quantity that is read, in bytes.
pub const MAX_BYTES: usize = 64;
/// Digits that a converted number keeps. A double has 15; the rest is room for the conversion's own error.
const SIGNIFICANT_DIGITS: i32 = 12;

/// What a unit measures. Only units of one dimension convert into each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Dimension {
    /// In litres.
    Volume,
    /// In metres.
    Length,
    /// In square metres.
    Area,
    /// In seconds.
    Time,
    /// In kelvins, absolute.
    Temperature,
    /// In kelvins per second.
    TemperatureRate,
    /// In grams.
    Mass,
    /// In moles.
    Amount,
    /// In moles per litre.
    Concentration,
    /// In grams per litre.
    MassConcentration,
    /// In ones.
    Ratio,
    /// In hertz.
    Frequency,
    /// In revolutions per second.
    RotationSpeed,
    /// In metres per second.
    Speed,
    /// In metres per second squared.
    Acceleration,
    /// In litres per second.
    FlowRate,
    /// In radians.
    Angle,
    /// In volts.
    Voltage,
    /// In amperes.
    Current,
    /// In ohms.
    Resistance,
    /// In siemens per metre.
    Conductivity,
    /// In watts.
    Power,
    /// In joules.
    Energy,
    /// In newtons.
    Force,
    /// In newton metres.
    Torque,
    /// In pascals.
    Pressure,
    /// In lux.
    Illuminance,
    /// In pH.
    Acidity,
}

impl fmt::Display for Dimension {
    /// With its article, as in "must be a volume".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Volume => "a volume",
            Self::Length => "a length",
            Self::Area => "an area",
            Self::Time => "a time",
            Self::Temperature => "a temperature",
            Self::TemperatureRate => "a temperature rate",
            Self::Mass => "a mass",
            Self::Amount => "an amount of substance",
            Self::Concentration => "a concentration",
            Self::MassConcentration => "a mass concentration",
            Self::Ratio => "a ratio",
            Self::Frequency => "a frequency",
            Self::RotationSpeed => "a rotation speed",
            Self::Speed => "a speed",
            Self::Acceleration => "an acceleration",
            Self::FlowRate => "a flow rate",
            Self::Angle => "an angle",
            Self::Voltage => "a voltage",
            Self::Current => "a current",
            Self::Resistance => "a resistance",
            Self::Conductivity => "a conductivity",
            Self::Power => "a power",
            Self::Energy => "an energy",
            Self::Force => "a force",
            Self::Torque => "a torque",
            Self::Pressure => "a pressure",
            Self::Illuminance => "an illuminance",
            Self::Acidity => "an acidity",
        })
    }
}

/// One unit of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unit {
    /// The UCUM code, or the usual name where UCUM has none.
    pub code: &'static str,
    /// How people write it, such as `µL`.
    pub symbol: &'static str,
    /// What it measures.
    pub dimension: Dimension,
    spellings: &'static [&'static str],
    scale: Scale,
}

impl Unit {
    /// Other accepted spellings, with `u` for `µ`.
    pub fn spellings(&self) -> impl Iterator<Item = &'static str> {
        self.spellings.iter().copied()
    }
}

/// `base = (value + offset) * numerator / denominator * 10^exponent`. A fraction and a power of ten, because 1e-6 and 1/60 have
/// no exact double.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Scale {
    numerator: f64,
    denominator: f64,
    exponent: i32,
    offset: f64,
}

/// Why a text is not a quantity of the unit. Never repeats the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadQuantity {
    /// The target is not in the table.
    #[error("its unit is not in the table of units")]
    UnknownTarget,
    /// The text does not begin with a decimal number.
    #[error("must be {dimension}: a decimal number and a unit, such as \"10 {unit}\"")]
    NotANumber {
        /// What is expected.
        dimension: Dimension,
        /// An example's unit.
        unit: &'static str,
    },
    /// There is only a number.
    #[error("must name its unit, such as \"10 {unit}\" for {dimension}")]
    NoUnit {
        /// What is expected.
        dimension: Dimension,
        /// An example's unit.
        unit: &'static str,
    },
    /// The unit is not in the table.
    #[error("must be {dimension} in a known unit, such as \"10 {unit}\"")]
    UnknownUnit {
        /// What is expected.
        dimension: Dimension,
        /// An example's unit.
        unit: &'static str,
    },
    /// The unit measures something else.
    #[error("must be {dimension}, such as \"10 {unit}\", not {found}")]
    OtherDimension {
        /// What is expected.
        dimension: Dimension,
        /// An example's unit.
        unit: &'static str,
        /// What was given.
        found: Dimension,
    },
    /// Too large or too small for a double.
    #[error("must be {dimension} within the range of numbers, such as \"10 {unit}\"")]
    Range {
        /// What is expected.
        dimension: Dimension,
        /// An example's unit.
        unit: &'static str,
    },
}

/// The unit of this code or spelling. Case matters: `mM` is a concentration, `mm` a length.
pub fn find(code: &str) -> Option<Unit> {
    if code.len() > MAX_BYTES {
        return None;
    }
    // UCUM writes u; people write the micro sign or the Greek letter.
    let code = code.replace(['\u{b5}', '\u{3bc}'], "u");
    table().find(|unit| unit.code == code || unit.spellings.contains(&code.as_str()))
}

/// Every unit, by dimension.
pub fn table() -> impl Iterator<Item = Unit> {
    TABLE.iter().map(|row| {
        let &(dimension, code, symbol, (numerator, denominator, exponent, offset), spellings) = row;
        Unit { code, symbol, dimension, spellings, scale: Scale { numerator, denominator, exponent, offset } }
    })
}

/// Reads a quantity such as `0.2 mL` and gives its number in `to_unit`.
///
/// The number is decimal, with an optional sign, fraction and exponent. The result is rounded to 12 significant digits; a
/// quantity that is already in `to_unit` is not changed.
///
/// # Errors
/// [`BadQuantity`] when the text has no unit or one of another dimension, or a number that is not finite.
pub fn convert(text: &str, to_unit: &str) -> Result<f64, BadQuantity> {
    let to = find(to_unit).ok_or(BadQuantity::UnknownTarget)?;
    let (dimension, unit) = (to.dimension, if to.code == "1" { "%" } else { to.symbol });
    if text.len() > MAX_BYTES {
        return Err(BadQuantity::NotANumber { dimension, unit });
    }
    let (number, code) = split_number(text.trim()).ok_or(BadQuantity::NotANumber { dimension, unit })?;
    if code.is_empty() {
        return Err(BadQuantity::NoUnit { dimension, unit });
    }
    let from = find(code).ok_or(BadQuantity::UnknownUnit { dimension, unit })?;
    if from.dimension != dimension {
        return Err(BadQuantity::OtherDimension { dimension, unit, found: from.dimension });
    }
    let is_zero = !number.chars().take_while(|c| !matches!(c, 'e' | 'E')).any(|c| matches!(c, '1'..='9'));
    let value = number.parse::<f64>().ok().filter(|value| value.is_finite() && (is_zero || *value != 0.0));
    let converted = value.and_then(|value| from.scale.convert(value, to.scale));
    converted.ok_or(BadQuantity::Range { dimension, unit })
}

/// The number and what follows it. Takes only what every implementation reads alike: no hexadecimal, no "inf", no "nan", no
/// digit separators.
fn split_number(text: &str) -> Option<(&str, &str)> {
    let bytes = text.as_bytes();
    let digits = |from: usize| bytes.iter().skip(from).take_while(|c| c.is_ascii_digit()).count();
    let mut at = usize::from(matches!(bytes.first(), Some(b'+' | b'-')));
    let whole = digits(at);
    at += whole;
    if bytes.get(at) == Some(&b'.') {
        let fraction = digits(at + 1);
        if fraction == 0 {
            return None;
        }
        at += 1 + fraction;
    } else if whole == 0 {
        return None;
    }
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(at + 1), Some(b'+' | b'-')));
        let exponent = digits(at + 1 + sign);
        at += if exponent == 0 { 0 } else { 1 + sign + exponent };
    }
    let (number, rest) = text.split_at_checked(at)?;
    let unit = rest.trim_start();
    // "1.2.3 mL" and "0,2 mL" are numbers gone wrong, not units.
    if unit.starts_with(['.', ',', '_', '+', '-', '\'']) { None } else { Some((number, unit)) }
}

impl Scale {
    /// The value in another scale of the same dimension; `None` if it is not finite or vanishes.
    fn convert(self, value: f64, to: Self) -> Option<f64> {
        if self == to {
            return Some(value + 0.0); // no negative zero
        }
        let shifted = value + self.offset;
        let scaled = ten_to(self.exponent - to.exponent, shifted * (self.numerator * to.denominator))
            / (self.denominator * to.numerator);
        if !scaled.is_finite() || (scaled == 0.0 && shifted != 0.0) {
            return None;
        }
        // Digits that an offset has cancelled must not come back as noise: 273.1501 K is 0.0001 °C.
        let largest =
            scaled.abs().max(to.offset.abs()).max(if self.offset == 0.0 { 0.0 } else { value.abs() });
        round(scaled - to.offset, largest)
    }
}

/// `value * 10^exponent`. Powers up to 10^22 are exact doubles, their inverses are not, so small ones divide.
fn ten_to(exponent: i32, value: f64) -> f64 {
    if exponent < 0 { value / 10_f64.powi(-exponent) } else { value * 10_f64.powi(exponent) }
}

/// Rounds to [`SIGNIFICANT_DIGITS`] of the largest number that took part.
fn round(value: f64, largest: f64) -> Option<f64> {
    let digits = SIGNIFICANT_DIGITS - 1;
    let magnitude =
        |x: f64| format!("{x:e}").rsplit('e').next().and_then(|exponent| exponent.parse::<i32>().ok());
    if value == 0.0 {
        return Some(0.0);
    }
    let lost = magnitude(largest)?.saturating_sub(magnitude(value)?).max(0);
    let Ok(kept) = usize::try_from(digits - lost) else { return Some(0.0) };
    format!("{value:.kept$e}")
        .parse::<f64>()
        .ok()
        .filter(|rounded| rounded.is_finite())
        .map(|rounded| rounded + 0.0)
}

type Row = (Dimension, &'static str, &'static str, (f64, f64, i32, f64), &'static [&'static str]);

use Dimension as D;

/// Powers of ten of the dimension's base unit.
const fn ten(exponent: i32) -> (f64, f64, i32, f64) {
    (1.0, 1.0, exponent, 0.0)
}

/// A multiple of the base unit.
const fn times(numerator: f64) -> (f64, f64, i32, f64) {
    (numerator, 1.0, 0, 0.0)
}

/// A power of ten of a part of the base unit.
const fn per(denominator: f64, exponent: i32) -> (f64, f64, i32, f64) {
    (1.0, denominator, exponent, 0.0)
}

const INCH_CENTIMETRES: f64 = 2.54; // exact: international yard and pound agreement, 1959
const GRAVITY: f64 = 9.806_65; // exact: 3rd CGPM, 1901
const PSI_PASCALS: f64 = 6_894.757_293_168; // pound-force per square inch
const ATMOSPHERE_PASCALS: f64 = 101_325.0; // exact: 10th CGPM, 1954
const ICE_POINT_KELVINS: f64 = 273.15; // exact: definition of the degree Celsius
const FAHRENHEIT_OFFSET: f64 = 459.67; // exact: 0 °F above absolute zero

/// Dimension, code, symbol, scale, other spellings.
#[rustfmt::skip]
static TABLE: &[Row] = &[
    (D::Volume, "L", "L", ten(0), &["l", "litre", "litres", "liter", "liters", "dm3", "dm³"]),
    (D::Volume, "dL", "dL", ten(-1), &["dl"]),
    (D::Volume, "cL", "cL", ten(-2), &["cl"]),
    (D::Volume, "mL", "mL", ten(-3), &["ml", "cm3", "cm³", "cc", "millilitre", "millilitres", "milliliter", "milliliters"]),
    (D::Volume, "uL", "µL", ten(-6), &["ul", "mm3", "mm³", "microlitre", "microlitres", "microliter", "microliters"]),
    (D::Volume, "nL", "nL", ten(-9), &["nl"]),
    (D::Volume, "pL", "pL", ten(-12), &["pl"]),
    (D::Volume, "m3", "m³", ten(3), &["m³"]),

    (D::Length, "m", "m", ten(0), &["metre", "metres", "meter", "meters"]),
    (D::Length, "dm", "dm", ten(-1), &[]),
    (D::Length, "cm", "cm", ten(-2), &[]),
    (D::Length, "mm", "mm", ten(-3), &["millimetre", "millimetres", "millimeter", "millimeters"]),
    (D::Length, "um", "µm", ten(-6), &["micron", "microns"]),
    (D::Length, "nm", "nm", ten(-9), &[]),
    (D::Length, "pm", "pm", ten(-12), &[]),
    (D::Length, "km", "km", ten(3), &[]),
    (D::Length, "[in_i]", "in", (INCH_CENTIMETRES, 1.0, -2, 0.0), &["in", "inch", "inches"]),

    (D::Area, "m2", "m²", ten(0), &["m²"]),
    (D::Area, "cm2", "cm²", ten(-4), &["cm²"]),
    (D::Area, "mm2", "mm²", ten(-6), &["mm²"]),
    (D::Area, "um2", "µm²", ten(-12), &["um²"]),

    (D::Time, "s", "s", ten(0), &["sec", "secs", "second", "seconds"]),
    (D::Time, "ms", "ms", ten(-3), &["millisecond", "milliseconds"]),
    (D::Time, "us", "µs", ten(-6), &["microsecond", "microseconds"]),
    (D::Time, "ns", "ns", ten(-9), &["nanosecond", "nanoseconds"]),
    (D::Time, "min", "min", times(60.0), &["mins", "minute", "minutes"]),
    (D::Time, "h", "h", times(3_600.0), &["hr", "hrs", "hour", "hours"]),
    (D::Time, "d", "d", times(86_400.0), &["day", "days"]),
    (D::Time, "wk", "wk", times(604_800.0), &["week", "weeks"]),

    (D::Temperature, "K", "K", ten(0), &["kelvin"]),
    (D::Temperature, "mK", "mK", ten(-3), &[]),
    (D::Temperature, "Cel", "°C", (1.0, 1.0, 0, ICE_POINT_KELVINS), &["degC", "°C", "\u{ba}C", "℃", "celsius"]),
    (D::Temperature, "[degF]", "°F", (5.0, 9.0, 0, FAHRENHEIT_OFFSET), &["degF", "°F", "\u{ba}F", "℉", "fahrenheit"]),

    (D::TemperatureRate, "K/s", "K/s", ten(0), &["Cel/s", "degC/s", "°C/s"]),
    (D::TemperatureRate, "K/min", "K/min", per(60.0, 0), &["Cel/min", "degC/min", "°C/min"]),
    (D::TemperatureRate, "K/h", "K/h", per(3_600.0, 0), &["Cel/h", "degC/h", "°C/h"]),

    (D::Mass, "g", "g", ten(0), &["gram", "grams"]),
    (D::Mass, "kg", "kg", ten(3), &["kilogram", "kilograms"]),
    (D::Mass, "mg", "mg", ten(-3), &["milligram", "milligrams"]),
    (D::Mass, "ug", "µg", ten(-6), &["mcg", "microgram", "micrograms"]),
    (D::Mass, "ng", "ng", ten(-9), &[]),
    (D::Mass, "pg", "pg", ten(-12), &[]),
    (D::Mass, "t", "t", ten(6), &["tonne", "tonnes"]),

    (D::Amount, "mol", "mol", ten(0), &[]),
    (D::Amount, "mmol", "mmol", ten(-3), &[]),
    (D::Amount, "umol", "µmol", ten(-6), &[]),
    (D::Amount, "nmol", "nmol", ten(-9), &[]),
    (D::Amount, "pmol", "pmol", ten(-12), &[]),

    (D::Concentration, "mol/L", "mol/L", ten(0), &["M", "mol/l", "molar"]),
    (D::Concentration, "mmol/L", "mmol/L", ten(-3), &["mM", "mmol/l", "mol/m3", "mol/m³"]),
    (D::Concentration, "umol/L", "µmol/L", ten(-6), &["uM", "umol/l"]),
    (D::Concentration, "nmol/L", "nmol/L", ten(-9), &["nM", "nmol/l"]),
    (D::Concentration, "pmol/L", "pmol/L", ten(-12), &["pM", "pmol/l"]),

    (D::MassConcentration, "g/L", "g/L", ten(0), &["g/l", "mg/mL", "mg/ml", "ug/uL", "ug/ul", "kg/m3"]),
    (D::MassConcentration, "g/mL", "g/mL", ten(3), &["g/ml", "g/cm3", "g/cm³"]),
    (D::MassConcentration, "mg/L", "mg/L", ten(-3), &["mg/l", "ug/mL", "ug/ml", "ng/uL", "ng/ul"]),
    (D::MassConcentration, "ug/L", "µg/L", ten(-6), &["ug/l", "ng/mL", "ng/ml", "pg/uL", "pg/ul"]),
    (D::MassConcentration, "ng/L", "ng/L", ten(-9), &["ng/l", "pg/mL", "pg/ml"]),

    (D::Ratio, "1", "1", ten(0), &[]),
    (D::Ratio, "%", "%", ten(-2), &["percent"]),
    (D::Ratio, "[ppth]", "‰", ten(-3), &["‰", "ppth"]),
    (D::Ratio, "[ppm]", "ppm", ten(-6), &["ppm"]),
    (D::Ratio, "[ppb]", "ppb", ten(-9), &["ppb"]),

    (D::Frequency, "Hz", "Hz", ten(0), &["1/s", "/s"]),
    (D::Frequency, "mHz", "mHz", ten(-3), &[]),
    (D::Frequency, "kHz", "kHz", ten(3), &[]),
    (D::Frequency, "MHz", "MHz", ten(6), &[]),
    (D::Frequency, "GHz", "GHz", ten(9), &[]),
    (D::Frequency, "/min", "1/min", per(60.0, 0), &["1/min"]),

    (D::RotationSpeed, "rpm", "rpm", per(60.0, 0), &["RPM", "rev/min", "r/min"]),
    (D::RotationSpeed, "rps", "rps", ten(0), &["rev/s", "r/s"]),
    (D::RotationSpeed, "deg/s", "°/s", per(360.0, 0), &["°/s"]),
    (D::RotationSpeed, "rad/s", "rad/s", per(std::f64::consts::TAU, 0), &[]),

    (D::Speed, "m/s", "m/s", ten(0), &[]),
    (D::Speed, "cm/s", "cm/s", ten(-2), &[]),
    (D::Speed, "mm/s", "mm/s", ten(-3), &[]),
    (D::Speed, "um/s", "µm/s", ten(-6), &[]),
    (D::Speed, "nm/s", "nm/s", ten(-9), &[]),
    (D::Speed, "m/min", "m/min", per(60.0, 0), &[]),
    (D::Speed, "mm/min", "mm/min", per(60.0, -3), &[]),
    (D::Speed, "um/min", "µm/min", per(60.0, -6), &[]),

    (D::Acceleration, "m/s2", "m/s²", ten(0), &["m/s²", "m/s^2"]),
    (D::Acceleration, "mm/s2", "mm/s²", ten(-3), &["mm/s²", "mm/s^2"]),
    (D::Acceleration, "[g]", "×g", times(GRAVITY), &["×g", "xg", "x g", "× g", "rcf", "RCF"]),

    (D::FlowRate, "L/s", "L/s", ten(0), &["l/s"]),
    (D::FlowRate, "mL/s", "mL/s", ten(-3), &["ml/s"]),
    (D::FlowRate, "uL/s", "µL/s", ten(-6), &["ul/s"]),
    (D::FlowRate, "nL/s", "nL/s", ten(-9), &["nl/s"]),
    (D::FlowRate, "L/min", "L/min", per(60.0, 0), &["l/min"]),
    (D::FlowRate, "mL/min", "mL/min", per(60.0, -3), &["ml/min"]),
    (D::FlowRate, "uL/min", "µL/min", per(60.0, -6), &["ul/min"]),
    (D::FlowRate, "nL/min", "nL/min", per(60.0, -9), &["nl/min"]),
    (D::FlowRate, "L/h", "L/h", per(3_600.0, 0), &["l/h"]),
    (D::FlowRate, "mL/h", "mL/h", per(3_600.0, -3), &["ml/h"]),
    (D::FlowRate, "uL/h", "µL/h", per(3_600.0, -6), &["ul/h"]),

    (D::Angle, "rad", "rad", ten(0), &["radian", "radians"]),
    (D::Angle, "mrad", "mrad", ten(-3), &[]),
    (D::Angle, "deg", "°", (std::f64::consts::PI, 180.0, 0, 0.0), &["°", "degree", "degrees"]),
    (D::Angle, "{rev}", "rev", times(std::f64::consts::TAU), &["rev", "turn", "turns"]),

    (D::Voltage, "V", "V", ten(0), &["volt", "volts"]),
    (D::Voltage, "kV", "kV", ten(3), &[]),
    (D::Voltage, "mV", "mV", ten(-3), &[]),
    (D::Voltage, "uV", "µV", ten(-6), &[]),

    (D::Current, "A", "A", ten(0), &["amp", "amps", "ampere", "amperes"]),
    (D::Current, "mA", "mA", ten(-3), &[]),
    (D::Current, "uA", "µA", ten(-6), &[]),
    (D::Current, "nA", "nA", ten(-9), &[]),
    (D::Current, "pA", "pA", ten(-12), &[]),

    (D::Resistance, "Ohm", "Ω", ten(0), &["Ω", "\u{2126}", "ohm", "ohms"]),
    (D::Resistance, "mOhm", "mΩ", ten(-3), &["mΩ", "m\u{2126}", "mohm"]),
    (D::Resistance, "kOhm", "kΩ", ten(3), &["kΩ", "k\u{2126}", "kohm"]),
    (D::Resistance, "MOhm", "MΩ", ten(6), &["MΩ", "M\u{2126}", "Mohm"]),

    (D::Conductivity, "S/m", "S/m", ten(0), &[]),
    (D::Conductivity, "S/cm", "S/cm", ten(2), &[]),
    (D::Conductivity, "mS/cm", "mS/cm", ten(-1), &[]),
    (D::Conductivity, "uS/cm", "µS/cm", ten(-4), &[]),

    (D::Power, "W", "W", ten(0), &["watt", "watts"]),
    (D::Power, "mW", "mW", ten(-3), &[]),
    (D::Power, "uW", "µW", ten(-6), &[]),
    (D::Power, "kW", "kW", ten(3), &[]),

    (D::Energy, "J", "J", ten(0), &["joule", "joules"]),
    (D::Energy, "mJ", "mJ", ten(-3), &[]),
    (D::Energy, "kJ", "kJ", ten(3), &[]),
    (D::Energy, "W.h", "Wh", times(3_600.0), &["Wh"]),

    (D::Force, "N", "N", ten(0), &["newton", "newtons"]),
    (D::Force, "mN", "mN", ten(-3), &[]),
    (D::Force, "uN", "µN", ten(-6), &[]),
    (D::Force, "kN", "kN", ten(3), &[]),

    (D::Torque, "N.m", "N·m", ten(0), &["N·m", "N*m", "Nm"]),
    (D::Torque, "mN.m", "mN·m", ten(-3), &["mN·m", "mN*m", "mNm"]),

    (D::Pressure, "Pa", "Pa", ten(0), &["pascal", "pascals"]),
    (D::Pressure, "hPa", "hPa", ten(2), &[]),
    (D::Pressure, "kPa", "kPa", ten(3), &[]),
    (D::Pressure, "MPa", "MPa", ten(6), &[]),
    (D::Pressure, "bar", "bar", ten(5), &[]),
    (D::Pressure, "mbar", "mbar", ten(2), &[]),
    (D::Pressure, "ubar", "µbar", ten(-1), &[]),
    (D::Pressure, "atm", "atm", times(ATMOSPHERE_PASCALS), &[]),
    (D::Pressure, "Torr", "Torr", (ATMOSPHERE_PASCALS, 760.0, 0, 0.0), &["torr"]),
    (D::Pressure, "[psi]", "psi", times(PSI_PASCALS), &["psi"]),

    (D::Illuminance, "lx", "lx", ten(0), &["lux"]),

    (D::Acidity, "[pH]", "pH", ten(0), &["pH"]),
];
