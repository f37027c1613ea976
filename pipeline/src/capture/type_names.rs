//! Names of types for people: the stream tells OIDs, and names only of types that are not built in.
//!
//! For the history of a table's layouts; nothing is decoded by a name.

use std::collections::HashMap;

/// A type as SQL writes it, with its modifier where that belongs to the name. `named` holds what the stream said.
pub(super) fn of((oid, modifier): (u32, i32), named: &HashMap<u32, String>) -> String {
    if let Some(name) = named.get(&oid) {
        return name.clone();
    }
    if let Ok(at) = BUILT_IN.binary_search_by_key(&oid, |(oid, ..)| *oid) {
        return format!("{}{}", BUILT_IN[at].2, suffix(oid, modifier));
    }
    match BUILT_IN.iter().find(|(_, array, _)| *array == oid) {
        Some((element, _, name)) => format!("{name}{}[]", suffix(*element, modifier)),
        None => format!("type {oid}"),
    }
}

/// `(10,2)` and the like.
fn suffix(oid: u32, modifier: i32) -> String {
    // Of varying length: a header of four bytes is counted in.
    let length = modifier - 4;
    match oid {
        _ if modifier < 0 => String::new(),
        1042 | 1043 if length >= 0 => format!("({length})"),
        1560 | 1562 => format!("({modifier})"),
        1700 if length >= 0 => {
            // Eleven bits with sign.
            let scale = ((length & 0x7ff) ^ 1024) - 1024;
            format!("({},{scale})", (length >> 16) & 0xffff)
        }
        _ => String::new(),
    }
}

/// Built-in types with the OID of their arrays (`pg_type.dat` of PostgreSQL 18; OIDs never change), by OID.
#[rustfmt::skip]
const BUILT_IN: &[(u32, u32, &str)] = &[
    (16, 1000, "boolean"), (17, 1001, "bytea"), (18, 1002, "\"char\""), (19, 1003, "name"), (20, 1016, "bigint"), (21, 1005, "smallint"),
    (23, 1007, "integer"), (24, 1008, "regproc"), (25, 1009, "text"), (26, 1028, "oid"), (27, 1010, "tid"), (28, 1011, "xid"),
    (29, 1012, "cid"), (114, 199, "json"), (142, 143, "xml"), (600, 1017, "point"), (601, 1018, "lseg"), (602, 1019, "path"),
    (603, 1020, "box"), (604, 1027, "polygon"), (628, 629, "line"), (650, 651, "cidr"), (700, 1021, "real"),
    (701, 1022, "double precision"), (718, 719, "circle"), (774, 775, "macaddr8"), (790, 791, "money"), (829, 1040, "macaddr"),
    (869, 1041, "inet"), (1033, 1034, "aclitem"), (1042, 1014, "character"), (1043, 1015, "character varying"), (1082, 1182, "date"),
    (1083, 1183, "time without time zone"), (1114, 1115, "timestamp without time zone"), (1184, 1185, "timestamp with time zone"),
    (1186, 1187, "interval"), (1266, 1270, "time with time zone"), (1560, 1561, "bit"), (1562, 1563, "bit varying"),
    (1700, 1231, "numeric"), (1790, 2201, "refcursor"), (2202, 2207, "regprocedure"), (2203, 2208, "regoper"),
    (2204, 2209, "regoperator"), (2205, 2210, "regclass"), (2206, 2211, "regtype"), (2249, 2287, "record"), (2275, 1263, "cstring"),
    (2950, 2951, "uuid"), (2970, 2949, "txid_snapshot"), (3220, 3221, "pg_lsn"), (3614, 3643, "tsvector"), (3615, 3645, "tsquery"),
    (3642, 3644, "gtsvector"), (3734, 3735, "regconfig"), (3769, 3770, "regdictionary"), (3802, 3807, "jsonb"), (3904, 3905, "int4range"),
    (3906, 3907, "numrange"), (3908, 3909, "tsrange"), (3910, 3911, "tstzrange"), (3912, 3913, "daterange"), (3926, 3927, "int8range"),
    (4072, 4073, "jsonpath"), (4089, 4090, "regnamespace"), (4096, 4097, "regrole"), (4191, 4192, "regcollation"),
    (4451, 6150, "int4multirange"), (4532, 6151, "nummultirange"), (4533, 6152, "tsmultirange"), (4534, 6153, "tstzmultirange"),
    (4535, 6155, "datemultirange"), (4536, 6157, "int8multirange"), (5038, 5039, "pg_snapshot"), (5069, 271, "xid8"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_named_as_sql_names_them() {
        let named = HashMap::from([(16_500, "order_state".to_owned())]);
        for (type_id, name) in [
            ((23, -1), "integer"),
            ((1043, 44), "character varying(40)"),
            ((1042, -1), "character"),
            ((1700, 655_366), "numeric(10,2)"),
            ((1700, ((5 << 16) | (-2 & 0x7ff)) + 4), "numeric(5,-2)"),
            ((1700, -1), "numeric"),
            ((1231, 655_366), "numeric(10,2)[]"),
            ((1560, 3), "bit(3)"),
            ((1007, -1), "integer[]"),
            ((16_500, -1), "order_state"),
            ((16_501, -1), "type 16501"),
        ] {
            assert_eq!(of(type_id, &named), name);
        }
        assert!(BUILT_IN.is_sorted_by_key(|(oid, ..)| *oid));
    }
}
