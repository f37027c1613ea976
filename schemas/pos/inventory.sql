-- The inventory database of the demo and the tests: what a stock system keeps of the point of sale.
--
-- Each table bears the name of the one it follows and the columns it wants, plus the two that a guarded upsert needs: the
-- version of the row (compared byte by byte, hence COLLATE "C") and whether the row was deleted. No foreign keys: rows of
-- different tables may arrive in another order than they were written in.

CREATE TABLE ingredient (
    id integer PRIMARY KEY, sku text, name text, base_uom text, updated_at timestamptz,
    _version text COLLATE "C" NOT NULL, _deleted boolean NOT NULL DEFAULT false
);
CREATE TABLE recipe_line (
    recipe_id integer, ingredient_id integer, qty numeric, uom text,
    _version text COLLATE "C" NOT NULL, _deleted boolean NOT NULL DEFAULT false,
    PRIMARY KEY (recipe_id, ingredient_id)
);
CREATE TABLE stock_level (
    ingredient_id integer, location_id integer, on_hand numeric, updated_at timestamptz,
    _version text COLLATE "C" NOT NULL, _deleted boolean NOT NULL DEFAULT false,
    PRIMARY KEY (ingredient_id, location_id)
);
CREATE TABLE stock_txn (
    id bigint PRIMARY KEY, ingredient_id integer, location_id integer, qty numeric, kind text, order_item_id uuid, created_at timestamptz,
    _version text COLLATE "C" NOT NULL, _deleted boolean NOT NULL DEFAULT false
);
CREATE TABLE menu_item (
    id integer PRIMARY KEY, sku text, name text, price numeric, allergens text[], active boolean, updated_at timestamptz,
    _version text COLLATE "C" NOT NULL, _deleted boolean NOT NULL DEFAULT false
);
CREATE TABLE menu_item_location (
    item_id integer, location_id integer, is_86 boolean, price_override numeric, updated_at timestamptz,
    _version text COLLATE "C" NOT NULL, _deleted boolean NOT NULL DEFAULT false,
    PRIMARY KEY (item_id, location_id)
);
CREATE TABLE "order" (
    id uuid, business_date date, location_id integer, channel text, status text, extra jsonb, opened_at timestamptz, closed_at timestamptz, version integer,
    _version text COLLATE "C" NOT NULL, _deleted boolean NOT NULL DEFAULT false,
    PRIMARY KEY (id, business_date)
);
CREATE TABLE check_ (
    id uuid PRIMARY KEY, order_id uuid, business_date date, total numeric, status text, receipt text, updated_at timestamptz,
    _version text COLLATE "C" NOT NULL, _deleted boolean NOT NULL DEFAULT false
);
CREATE TABLE order_item (
    id uuid PRIMARY KEY, check_id uuid, item_id integer, qty numeric, unit_price numeric, discount numeric, state text, note text, fired_at timestamptz,
    _version text COLLATE "C" NOT NULL, _deleted boolean NOT NULL DEFAULT false
);
CREATE TABLE order_item_modifier (
    order_item_id uuid, modifier_id integer, qty smallint,
    _version text COLLATE "C" NOT NULL, _deleted boolean NOT NULL DEFAULT false,
    PRIMARY KEY (order_item_id, modifier_id)
);
CREATE TABLE "DiningTable" (
    "locationId" integer, "No" integer, "Section Name" text, seats smallint,
    _version text COLLATE "C" NOT NULL, _deleted boolean NOT NULL DEFAULT false,
    PRIMARY KEY ("locationId", "No")
);
