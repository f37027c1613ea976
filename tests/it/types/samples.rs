//! Values of every type: those on which others have stumbled, and random ones.

use rand::RngExt;
use rand::rngs::StdRng;

/// How a value looks in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Text,
    Integer,
    Float,
    Numeric,
    Boolean,
    Json,
    Bytes,
    Timestamp,
    TimestampTz,
}

/// A type with values.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) sql_type: String,
    pub(super) class: Class,
    pub(super) texts: Vec<String>,
    /// Whether it has arrays.
    pub(super) array: bool,
    /// Whether its OID is the same everywhere: the elements of its arrays are told apart.
    pub(super) built_in: bool,
}

/// What the samples need beside what a new database has.
pub(super) const PREPARE: &str = r#"
    CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE EXTENSION ltree; CREATE EXTENSION cube; CREATE EXTENSION seg; CREATE EXTENSION isn;
    CREATE TYPE mood AS ENUM ('glad', 'sad, very', 'so "so"');
    CREATE DOMAIN percent AS numeric(5,2) CHECK (VALUE >= 0);
    CREATE DOMAIN share AS percent NOT NULL DEFAULT 0;
    CREATE DOMAIN tags AS text[];
    CREATE TYPE pair AS (a int, b text);
    CREATE TYPE nest AS (p pair, m mood[], "Q x" numeric);
    CREATE TYPE floatrange AS RANGE (subtype = float8);
    CREATE TYPE moodrange AS RANGE (subtype = mood);
    CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1';
    -- Base types that nobody knows, as those of PostGIS and pgvector are to the stream.
    CREATE TYPE geometry;
    CREATE FUNCTION geometry_in(cstring) RETURNS geometry LANGUAGE internal IMMUTABLE STRICT AS 'textin';
    CREATE FUNCTION geometry_out(geometry) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
    CREATE TYPE geometry (INPUT = geometry_in, OUTPUT = geometry_out, LIKE = text);
    CREATE TYPE vector;
    CREATE FUNCTION vector_in(cstring) RETURNS vector LANGUAGE internal IMMUTABLE STRICT AS 'textin';
    CREATE FUNCTION vector_out(vector) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
    CREATE TYPE vector (INPUT = vector_in, OUTPUT = vector_out, LIKE = text);
"#;

/// Every type of the server itself that a column may have; what only the server's own catalogues hold takes no input.
pub(super) const STORABLE: &str = "
    SELECT format_type(oid, NULL) FROM pg_type
    WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype IN ('b', 'r', 'm') AND typname NOT LIKE '\\_%' AND typrelid = 0
      AND typname NOT IN ('pg_node_tree', 'pg_ndistinct', 'pg_dependencies', 'pg_mcv_list', 'pg_brin_bloom_summary',
                          'pg_brin_minmax_multi_summary', 'gtsvector')";

/// Built-in types that need no random values.
const PLAIN: &[(&str, Class, &[&str])] = &[
    ("boolean", Class::Boolean, &["t", "f"]),
    ("\"char\"", Class::Text, &["q", "\"", ""]),
    ("name", Class::Text, &["order", "Ünïcode name", ""]),
    ("oid", Class::Integer, &["0", "4294967295"]),
    ("tid", Class::Text, &["(0,1)", "(4294967295,65535)"]),
    ("xid", Class::Text, &["0", "4294967295"]),
    ("xid8", Class::Text, &["0", "18446744073709551615"]),
    ("cid", Class::Text, &["0", "4294967295"]),
    ("oidvector", Class::Text, &["1 2 3", ""]),
    ("int2vector", Class::Text, &["1 -2 3", ""]),
    ("regproc", Class::Text, &["f", "-"]),
    ("regprocedure", Class::Text, &["f()", "pg_catalog.now()"]),
    ("regoper", Class::Text, &["pg_catalog.||/", "0"]),
    ("regoperator", Class::Text, &["+(integer,integer)", "0"]),
    ("regclass", Class::Text, &["pg_catalog.pg_class", "-"]),
    ("regcollation", Class::Text, &["\"C\"", "-"]),
    ("regtype", Class::Text, &["integer", "mood", "character varying[]"]),
    ("regrole", Class::Text, &["postgres", "-"]),
    ("regnamespace", Class::Text, &["public", "-"]),
    ("regconfig", Class::Text, &["english", "simple"]),
    ("regdictionary", Class::Text, &["simple"]),
    ("aclitem", Class::Text, &["postgres=arwd/postgres", "=r*/postgres"]),
    ("refcursor", Class::Text, &["cursor one", ""]),
    ("character", Class::Text, &["a", " "]),
    ("character(4)", Class::Text, &["a", "", "abcd", "é,\"{"]),
    ("bit", Class::Text, &["1", "0"]),
    ("bit varying", Class::Text, &["", "10110", "0000000000000000000000000000000000000000000000000000000000000000000001"]),
    ("money", Class::Text, &["1234567.89", "-0.01", "92233720368547758.07"]),
    ("xml", Class::Text, &["<a/>", "<order n=\"1\"><![CDATA[a & b]]>\n <é>ü</é></order>"]),
    ("uuid", Class::Text, &["8f6d1c1e-55aa-4f0e-9b1b-0a2f6f3c9d11", "00000000-0000-0000-0000-000000000000"]),
    ("inet", Class::Text, &["192.168.1.5", "192.168.1.5/24", "::ffff:1.2.3.4/128", "2001:db8::1/64"]),
    ("cidr", Class::Text, &["10.0.0.0/8", "2001:db8::/32", "1.2.3.4/32"]),
    ("macaddr", Class::Text, &["08:00:2b:01:02:03"]),
    ("macaddr8", Class::Text, &["08:00:2b:01:02:03:04:05"]),
    ("point", Class::Text, &["(1,2)", "(-0,Infinity)", "(0.1,1e-300)"]),
    ("line", Class::Text, &["{1,2,3}"]),
    ("lseg", Class::Text, &["[(1,2),(3,4)]"]),
    ("box", Class::Text, &["(3,4),(1,2)", "(1e300,NaN),(0,0)"]),
    ("path", Class::Text, &["((1,2),(3,4))", "[(1,2),(3,4)]"]),
    ("polygon", Class::Text, &["((0,0),(1,0),(1,1))"]),
    ("circle", Class::Text, &["<(1,2),3>"]),
    ("tsvector", Class::Text, &["'a':1A 'fat':2B,4C 'it''s'", ""]),
    ("tsquery", Class::Text, &["'fat' & !( 'rat' | 'cat':AB* ) <2> 'x'", ""]),
    ("jsonpath", Class::Text, &["$.a[*] ? (@.\"b c\" > 1.10)", "strict $"]),
    ("pg_lsn", Class::Text, &["0/0", "FFFFFFFF/FFFFFFFF"]),
    ("txid_snapshot", Class::Text, &["10:20:10,14,15"]),
    ("pg_snapshot", Class::Text, &["10:20:10,14,15"]),
    ("date", Class::Text, &["2026-11-22", "infinity", "-infinity", "4714-11-24 BC", "5874897-12-31"]),
    ("time without time zone", Class::Text, &["00:00:00", "24:00:00", "23:59:59.999999"]),
    ("time with time zone", Class::Text, &["24:00:00-15:59:59", "10:00:00.5+05:30"]),
    (
        "timestamp without time zone",
        Class::Timestamp,
        &[
            "2026-11-22 10:00:00",
            "2026-03-08 02:30:00.000001",
            "infinity",
            "-infinity",
            "0044-03-15 12:00:00 BC",
            "4714-11-24 00:00:00 BC",
            "9999-12-31 23:59:59.999999",
            "10000-01-01 00:00:00",
            "294276-12-31 23:59:59.999999",
            "0001-01-01 00:00:00",
        ],
    ),
    (
        "timestamp with time zone",
        Class::TimestampTz,
        &[
            "2026-11-22 10:00:00+00",
            "2026-10-25 02:30:00.1+05:30",
            "1890-01-01 00:00:00+00:12:08",
            "infinity",
            "-infinity",
            "0044-03-15 12:00:00+00 BC",
            "9999-12-31 23:59:59.999999+00",
            "294276-12-31 15:00:00.999999+00",
        ],
    ),
    ("int4range", Class::Text, &["[1,5)", "empty", "(,)", "[2147483646,)"]),
    ("int8range", Class::Text, &["[1,9223372036854775807)", "empty"]),
    ("numrange", Class::Text, &["(1.10,2.200]", "(,NaN]"]),
    ("tsrange", Class::Text, &["[\"2026-01-01 00:00:00\",infinity)", "empty"]),
    ("tstzrange", Class::Text, &["[\"2026-01-01 00:00:00+00\",\"2026-01-02 00:00:00+00\")"]),
    ("daterange", Class::Text, &["[2026-01-01,2026-02-01)", "(,)"]),
    ("int4multirange", Class::Text, &["{[1,5),[7,9)}", "{}"]),
    ("int8multirange", Class::Text, &["{[1,5)}", "{}"]),
    ("nummultirange", Class::Text, &["{[1.1,5.50),(7,)}", "{}"]),
    ("tsmultirange", Class::Text, &["{[\"2026-01-01 00:00:00\",\"2026-01-02 00:00:00\")}", "{}"]),
    ("tstzmultirange", Class::Text, &["{[\"2026-01-01 00:00:00+00\",infinity)}", "{}"]),
    ("datemultirange", Class::Text, &["{[2026-01-01,2026-02-01)}", "{}"]),
];

/// Types whose OIDs differ from database to database.
const OTHERS: &[(&str, &[&str])] = &[
    ("mood", &["glad", "sad, very", "so \"so\""]),
    ("percent", &["12.50", "999.99"]),
    ("share", &["0.00", "1.00"]),
    ("tags", &["{a,NULL,\"b c\"}", "{}"]),
    ("pair", &["(1,\"x \"\"y\"\"\")", "(,)"]),
    ("nest", &["(\"(1,\"\"a,b\"\")\",\"{glad,\"\"sad, very\"\"}\",NaN)", "(,,)"]),
    ("floatrange", &["[0.1,1e300)", "empty"]),
    ("floatmultirange", &["{[0.1,0.2)}", "{}"]),
    ("moodrange", &["[glad,\"sad, very\")", "empty"]),
    ("geometry", &["0101000020E61000000000000000000040", "POINT(1 2)"]),
    ("vector", &["[1,2.5,-3e-05]"]),
    ("hstore", &["\"a\"=>\"1\", \"b c\"=>NULL, \"\"=>\"\\\"\"", ""]),
    ("citext", &["MiXeD", ""]),
    ("ltree", &["Top.Science.Astronomy", ""]),
    ("lquery", &["Top.*{1,2}.Astro*@%|x"]),
    ("ltxtquery", &["Europe & Russia*@ & !Transportation"]),
    ("cube", &["(1, 2),(3, 4)", "(1)"]),
    ("seg", &["6.50", "1 .. 2.0", "~1.5"]),
    ("ean13", &["978-0-11-000533-1"]),
    ("isbn", &["0-11-000533-3"]),
];

/// Samples of every type that a server of this major version has.
pub(super) fn samples(major: i32, random: &mut StdRng) -> Vec<Sample> {
    let owned = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
    let built_in = |sql_type: &str, class, texts| Sample { sql_type: sql_type.to_owned(), class, texts, array: true, built_in: true };
    let mut found: Vec<Sample> = PLAIN.iter().map(|(name, class, texts)| built_in(name, *class, owned(texts))).collect();
    let mut random_texts = |fixed: &[&str], make: &mut dyn FnMut(&mut StdRng) -> String| {
        let mut texts = owned(fixed);
        texts.extend((0..6).map(|_| make(random)));
        texts
    };
    let integers = |bits: u32| move |random: &mut StdRng| (random.random::<i64>() >> (64 - bits)).to_string();
    let more = [
        built_in("smallint", Class::Integer, random_texts(&["-32768", "32767", "0"], &mut integers(16))),
        built_in("integer", Class::Integer, random_texts(&["-2147483648", "2147483647", "0"], &mut integers(32))),
        built_in("bigint", Class::Integer, random_texts(&["-9223372036854775808", "9223372036854775807"], &mut integers(64))),
        built_in(
            "real",
            Class::Float,
            random_texts(&["NaN", "Infinity", "-Infinity", "-0", "0.1", "1e-45", "3.4028235e+38", "16777217"], &mut |r| {
                let value = f32::from_bits(r.random());
                if value.is_finite() { format!("{value:e}") } else { "1.5".to_owned() }
            }),
        ),
        built_in(
            "double precision",
            Class::Float,
            random_texts(
                &["NaN", "Infinity", "-Infinity", "-0", "0.1", "5e-324", "1.7976931348623157e+308", "9007199254740993"],
                &mut |r| {
                    let value = f64::from_bits(r.random());
                    if value.is_finite() { format!("{value:e}") } else { "1.5".to_owned() }
                },
            ),
        ),
        built_in(
            "numeric",
            Class::Numeric,
            random_texts(
                &["NaN", "Infinity", "-Infinity", "0", "0.00", "-1.10", "1e131071", &format!("{}.{}", "9".repeat(500), "1".repeat(500))],
                &mut |r| format!("{}.{:0w$}", r.random::<i64>(), r.random_range(0..1000u32), w = r.random_range(3..20)),
            ),
        ),
        built_in("text", Class::Text, random_texts(&["", "NULL", "null", "\\", "{\"a\",b}", "tab\tquote\"\r\n\u{1}\u{7f}"], &mut any_text)),
        built_in("character varying", Class::Text, random_texts(&["", "a,b", "${jndi:x}", "=1+1", "\u{202e}rtl"], &mut any_text)),
        built_in(
            "json",
            Class::Json,
            random_texts(
                &["{\"a\" : 1.10, \"a\":2}", "null", "[ 1 ,\n 2 ]", "\"\\u0000 \\\"\"", "12345678901234567890123.4567890", "-0.0"],
                &mut any_json,
            ),
        ),
        built_in(
            "jsonb",
            Class::Json,
            random_texts(
                &["{\"b\": 9007199254740993, \"a\": 1.10}", "1e-7", "[]", "{}", &format!("{}1{}", "[".repeat(100), "]".repeat(100))],
                &mut any_json,
            ),
        ),
        built_in(
            "bytea",
            Class::Bytes,
            random_texts(&["\\x", "\\x00", "\\x00ff", "\\x5c78"], &mut |r| {
                let n = r.random_range(1..40);
                format!("\\x{}", (0..n).map(|_| format!("{:02x}", r.random::<u8>())).collect::<String>())
            }),
        ),
        built_in("interval", Class::Text, {
            let mut texts = random_texts(
                &["1 year -2 days 03:04:05.6", "178000000 years", "-178000000 years", "00:00:00", "-1 mon +1 day -00:00:00.000001"],
                &mut |r| format!("{} mons {} days {} us", r.random_range(-999..999), r.random_range(-999..999), r.random::<i32>()),
            );
            if major >= 17 {
                texts.push("infinity".to_owned());
            }
            texts
        }),
    ];
    found.extend(more);
    found.extend(OTHERS.iter().map(|(name, texts)| Sample {
        sql_type: (*name).to_owned(),
        class: Class::Text,
        texts: owned(texts),
        // A domain that forbids NULL forbids it in its arrays, and there are no arrays of array types.
        array: !matches!(*name, "share" | "tags"),
        built_in: false,
    }));
    found
}

/// Any text that PostgreSQL takes: everything but the zero character.
fn any_text(random: &mut StdRng) -> String {
    let n = random.random_range(0..30);
    (0..n)
        .map(|_| match random.random_range(0..4) {
            0 => char::from(random.random_range(1..128u8)),
            1 => ['"', '\\', '{', '}', ',', '\'', '/', '\u{feff}'][random.random_range(0..8)],
            _ => char::from_u32(random.random_range(1..0x11_0000)).unwrap_or('ß'),
        })
        .collect()
}

fn any_json(random: &mut StdRng) -> String {
    let text = serde_json::to_string(&any_text(random)).expect("a string");
    let number = format!("{}.{}", random.random::<i64>(), random.random::<u64>());
    format!("{{\"k\": [{number}, {text}, true, {{\"n\": null}}]}}")
}
