//! What one till writes: builds the statements of whole transactions and remembers the orders that it may touch again.
//!
//! Literals are built from numbers, UUIDs and text of our own, so nothing needs escaping.

use std::collections::VecDeque;
use std::fmt::Write as _;

use rand::rngs::StdRng;
use rand::{Rng, RngExt};

/// Locations, dishes and guests of `schemas/pos/seed.sql`.
const LOCATIONS: u16 = 12;
const ITEMS: u32 = 48;
const MODIFIERS: u32 = 18;
const INGREDIENTS: u32 = 60;
const CUSTOMERS: u32 = 600;
/// Orders a till remembers, open or paid. Those beyond are left as they are, as in any shop.
const REMEMBERED: usize = 200;

/// One transaction to execute.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) statements: Vec<String>,
    /// About how many row changes it commits.
    pub(super) rows: u32,
    pub(super) roll_back: bool,
    then: Then,
}

/// What the till remembers once the transaction has committed.
#[derive(Debug)]
enum Then {
    Nothing,
    Opened(Order),
    Paid(Order),
    /// The order stays as it is.
    Kept {
        order: Order,
        paid: bool,
    },
}

#[derive(Debug)]
struct Order {
    id: String,
    business_date: String,
    check: String,
    items: Vec<String>,
    customer: Option<u32>,
    total_cents: u64,
    payment: Option<String>,
}

/// One till: its locations and the orders it remembers.
#[derive(Debug)]
pub(super) struct Shop {
    locations: Vec<u16>,
    open: VecDeque<Order>,
    paid: VecDeque<Order>,
    number: u32,
}

impl Shop {
    /// Tills share no location while there are enough of them, so that they rarely wait for each other's stock rows.
    pub(super) fn new(till: u16, tills: u16) -> Self {
        let own: Vec<u16> = (1..=LOCATIONS).filter(|l| l % tills.min(LOCATIONS) == till % LOCATIONS.min(tills)).collect();
        Shop { locations: own, open: VecDeque::new(), paid: VecDeque::new(), number: 0 }
    }

    /// The next transaction. What it takes from memory goes back by [`Shop::committed`] or is lost by [`Shop::forget`].
    pub(super) fn next(&mut self, rng: &mut StdRng) -> Transaction {
        match rng.random_range(0..1000) {
            // Pay what is open as fast as it is sold.
            0..360 if self.open.len() > 3 => self.pay(rng),
            360..400 => self.change_tip(rng),
            400..430 => self.void_item(rng),
            430..445 => self.refund(rng),
            445..465 => self.delete_open(rng),
            465..475 => self.backdate(rng),
            475..500 => self.receive_stock(rng),
            500..520 => self.flag_86(rng),
            520..545 => self.customer(rng),
            545..555 => self.renumber_table(rng),
            555..560 => self.reprice(rng),
            560..562 => self.specials(rng),
            562..572 => self.shift(rng),
            572..575 => self.count_stock(rng),
            _ => self.place(rng),
        }
    }

    pub(super) fn committed(&mut self, transaction: Transaction) {
        let (order, paid) = match transaction.then {
            Then::Nothing => return,
            Then::Opened(order) => (order, false),
            Then::Paid(order) => (order, true),
            Then::Kept { order, paid } => (order, paid),
        };
        let memory = if paid { &mut self.paid } else { &mut self.open };
        memory.push_back(order);
        if memory.len() > REMEMBERED {
            memory.pop_front();
        }
    }

    /// The transaction rolled back or its end is unknown: the till forgets the order it was about.
    pub(super) fn forget(&mut self, transaction: Transaction) {
        drop(transaction);
    }

    fn location(&self, rng: &mut StdRng) -> u16 {
        self.locations.get(rng.random_range(0..self.locations.len().max(1))).copied().unwrap_or(1)
    }

    fn place(&mut self, rng: &mut StdRng) -> Transaction {
        self.number += 1;
        let location = self.location(rng);
        let order = Order {
            id: uuid(rng),
            // The business day ends at four in the morning.
            business_date: "(now() - interval '4 hours')::date".to_owned(),
            check: uuid(rng),
            items: (0..rng.random_range(1..=5)).map(|_| uuid(rng)).collect(),
            customer: rng.random_bool(0.4).then(|| rng.random_range(1..=CUSTOMERS)),
            total_cents: rng.random_range(800..9000),
            payment: None,
        };
        let (id, date, check) = (&order.id, &order.business_date, &order.check);
        let customer = order.customer.map_or("NULL".to_owned(), |c| c.to_string());
        let channel = ["dine_in", "takeaway", "delivery", "kiosk"][rng.random_range(0..4)];
        let employee = u32::from(location) - 1 + 12 * rng.random_range(1..=5);
        let mut statements = vec![
            format!(
                "INSERT INTO \"order\" (id, business_date, location_id, employee_id, customer_id, channel, number, extra, opened_at) VALUES \
                 ('{id}', {date}, {location}, {employee}, {customer}, '{channel}', {}, '{{\"guests\": {}, \"table\": \"T {}\", \"x\": [1.50, null, true]}}', now())",
                self.number,
                rng.random_range(1..8),
                rng.random_range(1..15)
            ),
            format!(
                "INSERT INTO check_ (id, order_id, business_date, no, subtotal, tax, total) VALUES ('{check}', '{id}', {date}, 1, {s}, {t}, {s} + {t})",
                s = money(order.total_cents),
                t = money(order.total_cents / 10)
            ),
        ];
        let mut items =
            String::from("INSERT INTO order_item (id, check_id, location_id, item_id, qty, unit_price, state, note, fired_at) VALUES ");
        let mut modifiers = String::new();
        for (n, item) in order.items.iter().enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            let note = match rng.random_range(0..20) {
                0 => format!("'{}'", text(rng, 3000)),
                1 | 2 => "'no onion, \"well done\" — ☕'".to_owned(),
                _ => "NULL".to_owned(),
            };
            let _ = write!(
                items,
                "{comma}('{item}', '{check}', {location}, {}, {}, {}, 'fired', {note}, now())",
                rng.random_range(1..=ITEMS),
                rng.random_range(1..4),
                money(rng.random_range(300..2500))
            );
            if rng.random_bool(0.4) {
                let _ =
                    write!(modifiers, "{}('{item}', {}, 1)", if modifiers.is_empty() { "" } else { ", " }, rng.random_range(1..=MODIFIERS));
            }
        }
        statements.push(items);
        if !modifiers.is_empty() {
            statements.push(format!("INSERT INTO order_item_modifier (order_item_id, modifier_id, qty) VALUES {modifiers}"));
        }
        if rng.random_bool(0.1) {
            // A mistyped line, taken back before the order was sent: never committed.
            statements.push("SAVEPOINT line".to_owned());
            statements.push(format!(
                "INSERT INTO order_item (id, check_id, location_id, item_id, qty, unit_price) VALUES ('{}', '{check}', {location}, 1, 1, 1)",
                uuid(rng)
            ));
            statements.push("ROLLBACK TO SAVEPOINT line".to_owned());
        }
        statements.push(deplete(check, location, "sale", 1));
        statements.push(level(check, location, 1));
        statements.push(format!(
            "INSERT INTO audit_log (employee_id, action, details) VALUES ({employee}, 'order.fired', '{{\"order\": \"{id}\"}}')"
        ));
        let items = order.items.len() as u32;
        let roll_back = rng.random_bool(0.03);
        Transaction { statements, rows: 4 + items + items * 6, roll_back, then: Then::Opened(order) }
    }

    fn pay(&mut self, rng: &mut StdRng) -> Transaction {
        let Some(mut order) = self.open.pop_front() else { return self.place(rng) };
        let payment = uuid(rng);
        let tender = ["card", "cash", "voucher", "online"][rng.random_range(0..4)];
        let receipt = text(rng, 9000);
        let (check, id) = (&order.check, &order.id);
        let mut statements = vec![
            format!(
                "INSERT INTO payment (id, check_id, tender, amount, status, captured_at) VALUES ('{payment}', '{check}', '{tender}', {}, 'captured', now())",
                money(order.total_cents + order.total_cents / 10)
            ),
            format!("UPDATE check_ SET status = 'paid', receipt = '{receipt}', updated_at = now() WHERE id = '{check}'"),
            format!(
                "UPDATE \"order\" SET status = 'closed', closed_at = now(), version = version + 1, updated_at = now() WHERE id = '{id}'"
            ),
        ];
        let mut rows = 3;
        if let Some(customer) = order.customer.filter(|c| c % 2 == 0) {
            let points = order.total_cents / 100;
            statements.push(format!(
                "INSERT INTO loyalty_txn (account_id, order_id, kind, points) SELECT id, '{id}', 'accrue', {points} FROM loyalty_account WHERE customer_id = {customer}"
            ));
            statements
                .push(format!("UPDATE loyalty_account SET points = points + {points}, updated_at = now() WHERE customer_id = {customer}"));
            rows += 2;
        }
        order.payment = Some(payment);
        Transaction { statements, rows, roll_back: false, then: Then::Paid(order) }
    }

    fn take_paid(&mut self, rng: &mut StdRng) -> Option<(Order, String)> {
        if self.paid.is_empty() {
            return None;
        }
        let order = self.paid.swap_remove_back(rng.random_range(0..self.paid.len()))?;
        let payment = order.payment.clone()?;
        Some((order, payment))
    }

    fn change_tip(&mut self, rng: &mut StdRng) -> Transaction {
        let Some((order, payment)) = self.take_paid(rng) else { return self.place(rng) };
        let statements = vec![
            format!(
                "UPDATE payment SET tip = {}, version = version + 1, updated_at = now() WHERE id = '{payment}'",
                money(rng.random_range(50..900))
            ),
            // The receipt stays as it is: the update does not carry it.
            format!("UPDATE check_ SET status = 'adjusted', updated_at = now() WHERE id = '{}'", order.check),
        ];
        Transaction { statements, rows: 2, roll_back: false, then: Then::Kept { order, paid: true } }
    }

    fn void_item(&mut self, rng: &mut StdRng) -> Transaction {
        let Some(order) = self.open.pop_back() else { return self.place(rng) };
        let Some(item) = order.items.first() else { return self.place(rng) };
        let comp = rng.random_bool(0.3);
        let mut statements = vec![if comp {
            // The food left the kitchen: a comp does not return stock.
            format!(
                "UPDATE order_item SET state = 'comped', discount = round(qty * unit_price, 2), updated_at = now() WHERE id = '{item}' AND state = 'fired'"
            )
        } else {
            format!(
                "UPDATE order_item SET state = 'voided', void_reason = 'guest changed mind', updated_at = now() WHERE id = '{item}' AND state = 'fired'"
            )
        }];
        if !comp {
            statements.push(format!(
                "INSERT INTO stock_txn (ingredient_id, location_id, qty, kind, order_item_id) \
                 SELECT ingredient_id, location_id, -qty, 'void', order_item_id FROM stock_txn WHERE order_item_id = '{item}' AND kind = 'sale' ON CONFLICT DO NOTHING"
            ));
        }
        Transaction { statements, rows: 3, roll_back: false, then: Then::Kept { order, paid: false } }
    }

    fn refund(&mut self, rng: &mut StdRng) -> Transaction {
        let Some((order, payment)) = self.take_paid(rng) else { return self.place(rng) };
        let statements = vec![
            format!(
                "INSERT INTO refund (id, payment_id, amount, reason) VALUES ('{}', '{payment}', {}, 'cold food')",
                uuid(rng),
                money(order.total_cents)
            ),
            format!("UPDATE payment SET status = 'refunded', version = version + 1, updated_at = now() WHERE id = '{payment}'"),
        ];
        Transaction { statements, rows: 2, roll_back: false, then: Then::Nothing }
    }

    /// An open order that never was: deleted outright with its check, items and modifiers, as many tills do.
    fn delete_open(&mut self, rng: &mut StdRng) -> Transaction {
        let Some(order) = self.open.pop_back() else { return self.place(rng) };
        let statements = vec![format!("DELETE FROM \"order\" WHERE id = '{}'", order.id)];
        Transaction { statements, rows: 2 + order.items.len() as u32, roll_back: false, then: Then::Nothing }
    }

    /// A closed day gets a late order: the business date is part of the key, and may be another partition's.
    fn backdate(&mut self, rng: &mut StdRng) -> Transaction {
        let Some(order) = self.open.pop_back() else { return self.place(rng) };
        let days = if rng.random_bool(0.2) { 45 } else { 1 };
        let statements =
            vec![format!("UPDATE \"order\" SET business_date = business_date - {days}, updated_at = now() WHERE id = '{}'", order.id)];
        Transaction { statements, rows: 3, roll_back: false, then: Then::Kept { order, paid: false } }
    }

    fn receive_stock(&mut self, rng: &mut StdRng) -> Transaction {
        let location = self.location(rng);
        let first = rng.random_range(1..=INGREDIENTS - 5);
        let kind = if rng.random_bool(0.7) { "receipt" } else { "waste" };
        let qty = if kind == "receipt" { rng.random_range(100..5000) } else { -rng.random_range(1..100) };
        let statements = vec![
            format!(
                "INSERT INTO stock_txn (ingredient_id, location_id, qty, kind) SELECT n, {location}, {qty}, '{kind}' FROM generate_series({first}, {first} + 4) n"
            ),
            format!(
                "UPDATE stock_level SET on_hand = on_hand + {qty}, updated_at = now() WHERE location_id = {location} AND ingredient_id BETWEEN {first} AND {first} + 4"
            ),
        ];
        Transaction { statements, rows: 10, roll_back: false, then: Then::Nothing }
    }

    /// The weekly count: every ingredient of a location in one transaction.
    fn count_stock(&mut self, rng: &mut StdRng) -> Transaction {
        let location = self.location(rng);
        let statements = vec![
            format!(
                "INSERT INTO stock_txn (ingredient_id, location_id, qty, kind) SELECT n, {location}, {} - n, 'count' FROM generate_series(1, {INGREDIENTS}) n",
                rng.random_range(0..60)
            ),
            format!("UPDATE stock_level SET on_hand = round(on_hand), updated_at = now() WHERE location_id = {location}"),
        ];
        Transaction { statements, rows: 2 * INGREDIENTS, roll_back: false, then: Then::Nothing }
    }

    fn flag_86(&mut self, rng: &mut StdRng) -> Transaction {
        let statements = vec![format!(
            "UPDATE menu_item_location SET is_86 = NOT is_86, updated_at = now() WHERE item_id = {} AND location_id = {}",
            rng.random_range(1..=ITEMS),
            self.location(rng)
        )];
        Transaction { statements, rows: 1, roll_back: false, then: Then::Nothing }
    }

    fn customer(&mut self, rng: &mut StdRng) -> Transaction {
        let statement = if rng.random_bool(0.5) {
            format!(
                "UPDATE customer SET consent = consent || '{{\"email\": {}}}', tags = array_append(tags[1:3], 'seen {}'), updated_at = now() WHERE id = {}",
                rng.random_bool(0.5),
                rng.random_range(0..100),
                rng.random_range(1..=CUSTOMERS)
            )
        } else {
            format!(
                "INSERT INTO customer (external_ref, name, email, consent) VALUES ('w-{0}', 'Walk-in', '{0}@example.com', '{{\"email\": false}}')",
                uuid(rng)
            )
        };
        Transaction { statements: vec![statement], rows: 1, roll_back: false, then: Then::Nothing }
    }

    /// Tables are renumbered: the key changes, to a number that is free.
    fn renumber_table(&mut self, rng: &mut StdRng) -> Transaction {
        let location = self.location(rng);
        let statements = vec![format!(
            "UPDATE \"DiningTable\" SET \"No\" = (SELECT max(\"No\") + 1 FROM \"DiningTable\" WHERE \"locationId\" = {location}) \
             WHERE \"locationId\" = {location} AND \"No\" = (SELECT min(\"No\") FROM \"DiningTable\" WHERE \"locationId\" = {location})"
        )];
        Transaction { statements, rows: 1, roll_back: false, then: Then::Nothing }
    }

    fn reprice(&mut self, rng: &mut StdRng) -> Transaction {
        let statements = vec![format!(
            "UPDATE menu_item SET price = price + {}, updated_at = now() WHERE id = {}",
            if rng.random_bool(0.5) { "0.10" } else { "-0.10" },
            rng.random_range(1..=ITEMS)
        )];
        Transaction { statements, rows: 1, roll_back: false, then: Then::Nothing }
    }

    /// A new day's specials replace all of the old ones.
    fn specials(&mut self, rng: &mut StdRng) -> Transaction {
        let statements = vec![
            "TRUNCATE specials".to_owned(),
            format!(
                "INSERT INTO specials (location_id, item_id, price) SELECT l.id, 1 + (l.id + {}) % {ITEMS}, 9.90 FROM location l ORDER BY l.id",
                rng.random_range(0..ITEMS)
            ),
        ];
        Transaction { statements, rows: 13, roll_back: false, then: Then::Nothing }
    }

    fn shift(&mut self, rng: &mut StdRng) -> Transaction {
        let location = self.location(rng);
        let statements = vec![
            format!("UPDATE shift SET closed_at = now(), updated_at = now() WHERE location_id = {location} AND closed_at IS NULL"),
            format!(
                "INSERT INTO shift (id, location_id, employee_id, business_date, opened_at) VALUES ('{}', {location}, {}, current_date, now())",
                uuid(rng),
                u32::from(location) - 1 + 12
            ),
        ];
        Transaction { statements, rows: 2, roll_back: false, then: Then::Nothing }
    }
}

/// Stock facts of a whole check by recipe: one a line and ingredient. Modifiers have recipes of their own ("no onion" is negative).
fn deplete(check: &str, location: u16, kind: &str, sign: i8) -> String {
    format!(
        "INSERT INTO stock_txn (ingredient_id, location_id, qty, kind, order_item_id) \
         SELECT line.ingredient_id, {location}, {sign} * -sum(line.qty * i.qty), '{kind}', i.id FROM order_item i \
         LEFT JOIN order_item_modifier m ON m.order_item_id = i.id JOIN recipe r ON r.item_id = i.item_id OR r.modifier_id = m.modifier_id \
         JOIN recipe_line line ON line.recipe_id = r.id WHERE i.check_id = '{check}' GROUP BY line.ingredient_id, i.id ORDER BY 1"
    )
}

/// The counts that follow from [`deplete`], in the order of ingredients, so that two tills of a location do not deadlock.
fn level(check: &str, location: u16, sign: i8) -> String {
    format!(
        "UPDATE stock_level s SET on_hand = s.on_hand + {sign} * t.qty, updated_at = now() FROM ( \
         SELECT s.ingredient_id, sum(t.qty) AS qty FROM stock_txn t JOIN order_item i ON i.id = t.order_item_id JOIN stock_level s \
         ON s.ingredient_id = t.ingredient_id AND s.location_id = {location} WHERE i.check_id = '{check}' GROUP BY 1 ORDER BY 1) t \
         WHERE s.ingredient_id = t.ingredient_id AND s.location_id = {location}"
    )
}

fn money(cents: u64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}

/// A random UUID, version 4.
pub(super) fn uuid(rng: &mut impl Rng) -> String {
    let n = (u128::from(rng.next_u64()) << 64) | u128::from(rng.next_u64());
    let n = n & !(0xf << 76) | (0x4 << 76);
    let n = n & !(0x3 << 62) | (0x2 << 62);
    let hex = format!("{n:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Text of up to `most` characters; about half of it is above the 2 kB from which PostgreSQL stores values out of line.
fn text(rng: &mut StdRng, most: usize) -> String {
    let mut out = String::new();
    let length = rng.random_range(most / 10..most);
    while out.len() < length {
        let _ = write!(out, "{:x} ", rng.next_u64());
    }
    out
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn every_till_has_a_location_and_sells() {
        let mut rng = StdRng::seed_from_u64(1);
        for tills in 1..=24 {
            for till in 0..tills {
                let mut shop = Shop::new(till, tills);
                assert!(!shop.locations.is_empty(), "till {till} of {tills}");
                for _ in 0..200 {
                    let transaction = shop.next(&mut rng);
                    assert!(!transaction.statements.is_empty() && transaction.rows > 0);
                    shop.committed(transaction);
                }
                assert!(shop.open.len() <= REMEMBERED && shop.paid.len() <= REMEMBERED);
            }
        }
    }

    #[test]
    fn uuids_are_of_version_4() {
        let id = uuid(&mut StdRng::seed_from_u64(7));
        assert_eq!(id.len(), 36);
        assert_eq!(&id[14..15], "4");
        assert!("89ab".contains(&id[19..20]));
    }
}
