-- Master data of a chain of twelve restaurants: what is there before the first sale. Deterministic.

INSERT INTO location (id, code, name, tz)
SELECT n, 'L' || lpad(n::text, 3, '0'), (ARRAY['Harbour', 'Old Town', 'Station', 'University', 'Riverside', 'Airport'])[1 + n % 6] || ' ' || n,
       (ARRAY['Europe/Berlin', 'Europe/Lisbon', 'America/New_York'])[1 + n % 3]
FROM generate_series(1, 12) n;

INSERT INTO employee (id, location_id, name, role)
SELECT n, 1 + n % 12, 'Employee ' || n, (ARRAY['server', 'cook', 'manager', 'cashier'])[1 + n % 4] FROM generate_series(1, 72) n;

INSERT INTO customer (external_ref, name, email, phone, consent, tags)
SELECT 'c-' || n, 'Guest ' || n || CASE WHEN n % 7 = 0 THEN ' Ðéjà-Çafé "Ω"' ELSE '' END, 'guest' || n || '@example.com',
       CASE WHEN n % 3 = 0 THEN NULL ELSE '+49 30 ' || n END,
       jsonb_build_object('email', n % 2 = 0, 'sms', n % 5 = 0, 'since', '2024-01-' || lpad((1 + n % 28)::text, 2, '0')),
       CASE WHEN n % 4 = 0 THEN ARRAY['regular', 'likes, commas', 'says "hi"'] WHEN n % 9 = 0 THEN ARRAY['vip', NULL] ELSE '{}' END
FROM generate_series(1, 600) n;

INSERT INTO loyalty_account (customer_id, tier, points)
SELECT id, (ARRAY['bronze', 'silver', 'gold'])[1 + id % 3], (id * 37) % 900 FROM customer WHERE id % 2 = 0;

INSERT INTO menu_category (id, name, sort_order)
SELECT n, (ARRAY['Starters', 'Burgers', 'Bowls', 'Sides', 'Desserts', 'Drinks'])[n], n FROM generate_series(1, 6) n;

INSERT INTO menu_item (id, sku, category_id, name, price, allergens)
SELECT n, 'M' || lpad(n::text, 4, '0'), 1 + n % 6, 'Dish ' || n, (350 + (n * 173) % 1900) / 100.0,
       CASE n % 4 WHEN 0 THEN ARRAY['gluten', 'milk'] WHEN 1 THEN ARRAY['nuts'] ELSE '{}' END
FROM generate_series(1, 48) n;

INSERT INTO modifier_group (id, name, at_most) VALUES (1, 'Extras', 3), (2, 'Without', 4), (3, 'Size', 1);
INSERT INTO modifier (id, group_id, name, price)
SELECT n, 1 + n % 3, CASE n % 3 WHEN 0 THEN 'extra ' WHEN 1 THEN 'no ' ELSE 'size ' END || n, CASE WHEN n % 3 = 1 THEN 0 ELSE (n * 25 % 300) / 100.0 END
FROM generate_series(1, 18) n;

INSERT INTO menu_item_location (item_id, location_id, price_override)
SELECT i.id, l.id, CASE WHEN (i.id + l.id) % 10 = 0 THEN i.price + 1 END FROM menu_item i, location l;

INSERT INTO ingredient (id, sku, name, base_uom)
SELECT n, 'I' || lpad(n::text, 4, '0'), 'Ingredient ' || n, (ARRAY['g', 'ml', 'pc'])[1 + n % 3] FROM generate_series(1, 60) n;

INSERT INTO recipe (id, item_id, valid_from) SELECT id, id, '2024-01-01' FROM menu_item;
-- "no onion" takes away, "extra bacon" adds.
INSERT INTO recipe (id, modifier_id, valid_from) SELECT 1000 + id, id, '2024-01-01' FROM modifier;
INSERT INTO recipe_line (recipe_id, ingredient_id, qty, uom)
SELECT r.id, 1 + (r.id * 7 + k * 11) % 60, CASE WHEN r.modifier_id % 3 = 1 THEN -1 ELSE 1 END * (5 + (r.id * k) % 90) / 4.0, 'g'
FROM recipe r, generate_series(1, 3) k WHERE r.item_id IS NOT NULL OR k = 1;

INSERT INTO stock_level (ingredient_id, location_id, on_hand) SELECT i.id, l.id, 100000 FROM ingredient i, location l;

INSERT INTO "DiningTable" ("locationId", "No", "Section Name", seats)
SELECT l.id, n, (ARRAY['Window', 'Terrace, "sunny"', 'Bar'])[1 + n % 3], 2 + n % 5 FROM location l, generate_series(1, 15) n;

INSERT INTO specials (location_id, item_id, price) SELECT l.id, 1 + (l.id * 5 + n) % 48, 5 + n FROM location l, generate_series(1, 3) n;
