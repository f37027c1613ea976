//! What the server's errors mean for a batch. Messages of data errors quote values, so of these only names are kept.
//!
//! Numbers: MariaDB's "Error Codes" and MySQL's "Server Error Message Reference".

use mysql_async::{DriverError, Error, ServerError};

use super::super::dialect::{Failure, definite};
use crate::sink::{Class, Reason, SinkError};

/// What a statement's error means.
pub(super) fn failure(error: &Error) -> Failure {
    let server = match error {
        Error::Server(server) => server,
        Error::Driver(DriverError::PacketTooLarge) => {
            let message = "the rows are larger than the server's max_allowed_packet".to_owned();
            return Failure::Row(Reason { code: "sql.error_1153".into(), message });
        }
        Error::Driver(DriverError::NoClientSslFlagFromServer) => {
            return Failure::Whole(definite("sql.tls", "the server offers no TLS".into()));
        }
        // These are about sockets, certificates and packets, never about a row.
        error => {
            let message = error.to_string();
            return Failure::Whole(SinkError { code: "sql.connection".into(), message, class: Class::Transient, after: None });
        }
    };
    match server.code {
        // A unique value, a missing parent, children that are left.
        1022 | 1062 | 1169 | 1216 | 1217 | 1451 | 1452 | 1586 | 1557 | 1761 | 1762 => return Failure::Conflict(reason(server)),
        // NULL, no default, no JSON, wrong or long values, check constraints, a trigger's own refusal, rows that are too large.
        1048 | 1153 | 1263 | 1264 | 1265 | 1292 | 1300 | 1364 | 1366 | 1406 | 1411 | 1425 | 1426 | 1427 | 1441 | 1644 | 1690 | 3140
        | 3819 | 4025 | 4037 | 4038 | 139 | 1118 => return Failure::Row(reason(server)),
        // Too many sessions, a shutdown, read-only servers, a killed statement, full disks and tables.
        1020
        | 1021
        | 1040
        | 1041
        | 1053
        | 1077
        | 1114
        | 1129
        | 1158..=1161
        | 1180
        | 1181
        | 1203
        | 1205
        | 1206
        | 1213
        | 1226
        | 1290
        | 1317
        | 1792
        | 1836
        | 1927
        | 1969
        | 3024
        | 4031 => return Failure::Whole(whole(server, Class::Transient)),
        _ => {}
    }
    match server.state.get(..2).unwrap_or_default() {
        "22" | "23" | "45" => Failure::Row(reason(server)),
        // Credentials, missing databases, permissions, syntax and names: someone has to act.
        "28" | "3D" | "42" | "0A" => Failure::Whole(whole(server, Class::Definite)),
        _ => Failure::Whole(whole(server, Class::Transient)),
    }
}

fn code(error: &ServerError) -> String {
    format!("sql.error_{}", error.code)
}

fn whole(error: &ServerError, class: Class) -> SinkError {
    // Outside the data classes a message names objects, users and settings.
    SinkError { code: code(error), message: error.message.clone(), class, after: None }
}

fn reason(error: &ServerError) -> Reason {
    let mut message = format!("error {}, SQLSTATE {}", error.code, error.state);
    // The name stands behind the value, so the last one is the server's own word.
    if let Some((_, name)) = error.message.rsplit_once(" for column ") {
        message.push_str(&format!(", column {}", name.split(" at row ").next().unwrap_or_default()));
    } else if let Some((name, _)) = error.message.strip_prefix("CONSTRAINT `").and_then(|rest| rest.split_once('`')) {
        message.push_str(&format!(", constraint {name}"));
    }
    Reason { code: code(error), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(code: u16, state: &str, message: &str) -> Failure {
        failure(&Error::Server(ServerError { code, state: state.into(), message: message.into() }))
    }

    #[test]
    fn errors_have_a_class_and_no_value() {
        let Failure::Row(reason) = check(1366, "22007", "Incorrect integer value: 'many for column x' for column `d`.`a`.`qty` at row 1")
        else {
            panic!("a row's fault")
        };
        assert_eq!((reason.code.as_str(), reason.message.as_str()), ("sql.error_1366", "error 1366, SQLSTATE 22007, column `d`.`a`.`qty`"));
        let Failure::Row(reason) = check(4025, "23000", "CONSTRAINT `a_qty_check` failed for `d`.`a`") else { panic!("a row's fault") };
        assert!(reason.message.ends_with("constraint a_qty_check"));
        let Failure::Conflict(reason) = check(1062, "23000", "Duplicate entry 'secret' for key 'PRIMARY'") else { panic!("a conflict") };
        assert!(!reason.message.contains("secret"));
        let class = |code, state| match check(code, state, "") {
            Failure::Whole(error) => error.class,
            _ => panic!("{code} is no row's fault"),
        };
        for (code, state) in [(1213, "40001"), (1205, "HY000"), (1053, "08S01"), (1290, "HY000"), (9999, "HY000")] {
            assert_eq!(class(code, state), Class::Transient, "{code}");
        }
        for (code, state) in [(1045, "28000"), (1064, "42000"), (1054, "42S22"), (1142, "42000"), (1049, "42000"), (1146, "42S02")] {
            assert_eq!(class(code, state), Class::Definite, "{code}");
        }
    }
}
