use super::*;
use crate::table::ValueClass::{self, Boolean, Bytes, Float, Integer, Json, Numeric, Text, Timestamp, TimestampTz};

fn scalar(class: ValueClass, text: &[u8]) -> String {
    let mut out = Vec::new();
    write_value(&mut out, class, false, b',', text);
    String::from_utf8(out).expect("UTF-8 whatever comes in")
}

fn array(class: ValueClass, delimiter: u8, text: &[u8]) -> String {
    let mut out = Vec::new();
    write_value(&mut out, class, true, delimiter, text);
    String::from_utf8(out).expect("UTF-8 whatever comes in")
}

#[track_caller]
fn check(class: ValueClass, text: &str, expected: &str) {
    assert_eq!(scalar(class, text.as_bytes()), expected, "{class:?} {text:?}");
    assert!(serde_json::from_str::<&serde_json::value::RawValue>(expected).is_ok(), "{expected} is JSON");
}

#[track_caller]
fn check_array(class: ValueClass, text: &str, expected: &str) {
    assert_eq!(array(class, b',', text.as_bytes()), expected, "{class:?} {text:?}");
    assert!(serde_json::from_str::<&serde_json::value::RawValue>(expected).is_ok(), "{expected} is JSON");
}

#[test]
fn numbers_are_verbatim_and_what_is_no_number_is_a_string() {
    for n in ["0", "-1", "9223372036854775807", "-9223372036854775808"] {
        check(Integer, n, n);
    }
    for (text, expected) in [("007", "\"007\""), ("", "\"\""), ("-", "\"-\""), ("1.5", "\"1.5\""), ("٣", "\"٣\"")] {
        check(Integer, text, expected);
    }
    for n in ["0", "-0", "1.5", "1e+20", "1e-05", "1.7976931348623157e+308", "5e-324"] {
        check(Float, n, n);
    }
    for text in ["NaN", "Infinity", "-Infinity", "1.", ".5", "1e", "01", "+1", "0x1"] {
        check(Float, text, &format!("\"{text}\""));
    }
    check(Numeric, "12345678901234567890.123456789000", "\"12345678901234567890.123456789000\"");
    check(Numeric, "NaN", "\"NaN\"");
    check(Boolean, "t", "true");
    check(Boolean, "f", "false");
    check(Boolean, "maybe", "\"maybe\"");
}

#[test]
fn strings_are_escaped_as_json_wants_it() {
    check(Text, "", "\"\"");
    check(Text, "plain", "\"plain\"");
    check(Text, "a \"quoted\" \\ back", r#""a \"quoted\" \\ back""#);
    check(Text, "\n\r\t\u{8}\u{c}\u{1}\u{1f}\u{7f}", "\"\\n\\r\\t\\b\\f\\u0001\\u001f\u{7f}\"");
    check(Text, "Zoë 🍕 \u{202e}rtl", "\"Zoë 🍕 \u{202e}rtl\"");
    // Every byte at every place of the eight that are looked at together.
    for at in 0..24 {
        for byte in 0..=127u8 {
            let mut text = [b'x'; 24];
            text[at] = byte;
            let text = std::str::from_utf8(&text).expect("ASCII");
            let read: String = serde_json::from_str(&scalar(Text, text.as_bytes())).expect("JSON");
            assert_eq!(read, text);
        }
    }
}

#[test]
fn bytes_that_are_not_utf8_are_replaced() {
    assert_eq!(scalar(Text, b"caf\xe9 au \"lait\""), "\"caf\u{fffd} au \\\"lait\\\"\"");
    assert_eq!(scalar(Text, b"\xed\xa0\x80"), "\"\u{fffd}\u{fffd}\u{fffd}\"");
    assert_eq!(scalar(Json, b"{\"a\":\"\xff\"}"), "{\"a\":\"\u{fffd}\"}");
    assert_eq!(array(Text, b',', b"{\"\xff\\\"\"}"), "[\"\u{fffd}\\\"\"]");
    assert_eq!(scalar(Timestamp, b"2026-11-22 10:00:0\xff"), "\"2026-11-22 10:00:0\u{fffd}\"");
}

#[test]
fn json_is_embedded_as_it_came() {
    check(Json, "{\"b\": 1.50, \"a\": [1e400, \"\\u0000\"]}", "{\"b\": 1.50, \"a\": [1e400, \"\\u0000\"]}");
    let mut out = Vec::new();
    // White space may hold line breaks: those of `json` stay.
    write_scalar(&mut out, Json, b"{\n \"a\":\t1 }");
    assert_eq!(out, b"{\n \"a\":\t1 }");
}

#[test]
fn instants_become_rfc_3339_where_that_can_say_them() {
    check(TimestampTz, "2026-11-22 10:00:00.123456+00", "\"2026-11-22T10:00:00.123456Z\"");
    check(TimestampTz, "2026-11-22 10:00:00+00", "\"2026-11-22T10:00:00Z\"");
    check(TimestampTz, "2026-11-22 10:00:00.5+02", "\"2026-11-22T10:00:00.5+02:00\"");
    check(TimestampTz, "2026-11-22 10:00:00-03:30", "\"2026-11-22T10:00:00-03:30\"");
    check(Timestamp, "2026-11-22 10:00:00.1", "\"2026-11-22T10:00:00.1\"");
    for text in [
        "infinity",
        "-infinity",
        "0044-03-15 10:00:00+00 BC",
        "12026-11-22 10:00:00+00",
        "1883-11-18 12:00:00-04:56:02",
        "2026-11-22 10:00:00",
        "2026-11-22 10:00:00.+00",
        "Sun Nov 22 10:00:00 2026 UTC",
    ] {
        check(TimestampTz, text, &format!("\"{text}\""));
    }
    for text in ["infinity", "0044-03-15 10:00:00 BC", "294276-12-31 23:59:59.999999", "2026-11-22 10:00:00+00"] {
        check(Timestamp, text, &format!("\"{text}\""));
    }
}

#[test]
fn bytea_becomes_base64() {
    let samples: [(&str, &str); 6] =
        [("", ""), ("66", "Zg=="), ("666F", "Zm8="), ("666f6f", "Zm9v"), ("00ff10", "AP8Q"), ("fffefdfc", "//79/A==")];
    for (hex, base64) in samples {
        check(Bytes, &format!("\\x{hex}"), &format!("\"{base64}\""));
    }
    check(Bytes, "\\x6", r#""\\x6""#);
    check(Bytes, "\\x6g", r#""\\x6g""#);
    check(Bytes, "\\x666f6z", r#""\\x666f6z""#);
    check(Bytes, "abc\\000", r#""abc\\000""#);
}

#[test]
fn arrays_become_json_arrays() {
    check_array(Integer, "{}", "[]");
    check_array(Integer, "{1,NULL,-3}", "[1,null,-3]");
    check_array(Integer, "{{1,2},{3,4}}", "[[1,2],[3,4]]");
    check_array(Integer, "{{{1}},{{2}}}", "[[[1]],[[2]]]");
    check_array(Float, "{1.5,NaN,Infinity}", "[1.5,\"NaN\",\"Infinity\"]");
    check_array(Boolean, "{t,f,NULL}", "[true,false,null]");
    check_array(Numeric, "{1.10,NaN}", "[\"1.10\",\"NaN\"]");
    check_array(
        Text,
        r#"{plain,"with space","a,b","{}","","NULL",NULL,null}"#,
        r#"["plain","with space","a,b","{}","","NULL",null,"null"]"#,
    );
    check_array(Text, r#"{"say \"hi\"","back\\slash","\\\\\"","Zoë"}"#, r#"["say \"hi\"","back\\slash","\\\\\"","Zoë"]"#);
    check_array(Text, "{\"line\nbreak\"}", r#"["line\nbreak"]"#);
    check_array(Json, r#"{"{\"a\": \"b\\\\\"}",1,"null",NULL}"#, r#"[{"a": "b\\"},1,null,null]"#);
    check_array(Bytes, r#"{"\\x00ff10",NULL}"#, r#"["AP8Q",null]"#);
    check_array(TimestampTz, r#"{"2026-11-22 10:00:00+00",infinity}"#, r#"["2026-11-22T10:00:00Z","infinity"]"#);
    assert_eq!(array(Text, b';', b"{(1,1),(0,0);NULL}"), r#"["(1,1),(0,0)",null]"#);
}

#[test]
fn arrays_that_json_can_not_say_stay_text() {
    for text in [
        "[2:3]={1,2}",
        "",
        "1",
        "{",
        "{1",
        "{1,",
        "{1,}",
        "{,1}",
        "{1}}",
        "{1}{2}",
        "{{1}2}",
        "{1 2}x",
        "{\"a}",
        "{\"a\"b}",
        "{\"a\\",
        "{\"a\\\"",
        "{a\"b\"}",
        "{{{{{{{1}}}}}}}",
        "null",
    ] {
        let expected = serde_json::to_string(text).expect("a string");
        assert_eq!(array(Text, b',', text.as_bytes()), expected);
        assert_eq!(array(Json, b',', text.as_bytes()), expected);
    }
}

#[test]
fn commit_times_count_from_2000() {
    let print = |micros| {
        let mut out = Vec::new();
        write_instant(&mut out, micros);
        String::from_utf8(out).expect("ASCII")
    };
    assert_eq!(print(0), "2000-01-01T00:00:00.000000Z");
    assert_eq!(print(-1), "1999-12-31T23:59:59.999999Z");
    assert_eq!(print(848_656_800_123_456), "2026-11-22T10:00:00.123456Z");
    assert_eq!(print(5_097_600_000_000), "2000-02-29T00:00:00.000000Z");
    assert_eq!(print(i64::MAX), "294277-01-09T04:00:54.775807Z");
    assert!(print(i64::MIN).starts_with('-'));
}
