-- What CREATE EXTENSION makes, and that nobody else may use it yet.
CREATE EXTENSION idempotency;
LOAD 'idempotency';
\set VERBOSITY sqlstate
CREATE EXTENSION idempotency;
\set VERBOSITY default

SELECT e.extversion = a.default_version AS version, e.extrelocatable, v.superuser, v.trusted
FROM pg_extension e
JOIN pg_available_extensions a ON a.name = e.extname
JOIN pg_available_extension_versions v ON v.name = e.extname AND v.version = e.extversion
WHERE e.extname = 'idempotency';

-- every object but row types, which are members in newer servers only
CREATE VIEW members AS
SELECT d.classid, d.objid
FROM pg_depend d
JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
WHERE d.deptype = 'e' AND e.extname = 'idempotency' AND d.classid <> 'pg_type'::regclass;
SELECT pg_describe_object(classid, objid, 0) COLLATE "C" AS object FROM members ORDER BY 1;

-- signatures, as released they never change
\x on
\pset format unaligned
SELECT p.proname AS name, pg_get_function_arguments(p.oid) AS arguments, pg_get_function_result(p.oid) AS result,
	p.provolatile AS volatile, p.proparallel AS parallel, p.proisstrict AS strict, p.prosecdef AS secdef
FROM members m JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND m.objid = p.oid
ORDER BY 1;
\x off
\pset format aligned

SELECT attname, format_type(atttypid, atttypmod) AS type, attnotnull
FROM pg_attribute
WHERE attrelid = 'idem_keys'::regclass AND attnum > 0 AND NOT attisdropped
ORDER BY attname;
SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'idem_keys'::regclass AND contype = 'p';
-- only columns that never change are indexed
SELECT DISTINCT a.attname
FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indexrelid
WHERE i.indrelid IN ('idem_keys'::regclass, 'idem_tokens'::regclass, 'idem_codes'::regclass)
	AND a.attname NOT IN ('digest', 'created_at', 'subject', 'purpose');
-- pg_dump takes the rows along
SELECT extconfig::regclass[] FROM pg_extension WHERE extname = 'idempotency';

-- without a comment: none
SELECT pg_describe_object(classid, objid, 0) AS uncommented
FROM members WHERE obj_description(objid, classid::regclass::name) IS NULL
UNION ALL
SELECT a.attname
FROM members m JOIN pg_attribute a ON m.classid = 'pg_class'::regclass AND a.attrelid = m.objid
JOIN pg_class c ON c.oid = a.attrelid AND (c.relkind = 'r' OR c.relname IN ('idem_stat', 'idem_in_flight'))
WHERE a.attnum > 0 AND NOT a.attisdropped AND col_description(a.attrelid, a.attnum) IS NULL;
SELECT obj_description(oid, 'pg_extension') IS NOT NULL AS commented
FROM pg_extension WHERE extname = 'idempotency';

-- granted to anybody but the owner: what monitoring needs
SELECT pg_describe_object(m.classid, m.objid, 0) AS open_object, acl.privilege_type, acl.grantee::regrole
FROM members m
LEFT JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
LEFT JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid,
LATERAL aclexplode(coalesce(p.proacl, c.relacl,
	acldefault(CASE WHEN p.oid IS NOT NULL THEN 'f' ELSE 'r' END::"char", coalesce(p.proowner, c.relowner)))) acl
WHERE acl.grantee <> coalesce(p.proowner, c.relowner)
ORDER BY 1;
CREATE ROLE regress_idem_nobody;
SELECT pg_describe_object(m.classid, m.objid, 0) AS open_object
FROM members m
WHERE (m.classid = 'pg_proc'::regclass AND has_function_privilege('regress_idem_nobody', m.objid, 'EXECUTE'))
	OR (m.classid = 'pg_class'::regclass AND has_any_column_privilege('regress_idem_nobody', m.objid,
		'SELECT, INSERT, UPDATE, REFERENCES'))
	OR (m.classid = 'pg_class'::regclass AND has_table_privilege('regress_idem_nobody', m.objid,
		'DELETE, TRUNCATE, TRIGGER'));
SELECT count(*) > 5 AS checked FROM members;

-- settings
SELECT name, current_setting(name) AS value, unit, vartype, context
FROM pg_settings
WHERE name IN ('idempotency.default_ttl', 'idempotency.max_result_size', 'idempotency.require_scope',
	'idempotency.retry_after')
ORDER BY name;
SELECT name FROM pg_settings
WHERE name LIKE 'idempotency.%' AND (category <> 'Customized Options' OR coalesce(short_desc, '') = '');
SET idempotency.default_ttl = '90min';
SHOW idempotency.default_ttl;
SET idempotency.default_ttl = -1;
SET idempotency.max_result_size = '16kB';
SHOW idempotency.max_result_size;
SET idempotency.require_scope = on;
RESET ALL;
\set VERBOSITY sqlstate
SET idempotency.default_ttl = 'soon';
SET idempotency.default_ttl = '1kB';
SET idempotency.default_ttl = -2;
-- every call without a ttl would fail
SET idempotency.default_ttl = 0;
SET idempotency.default_ttl = '1000000d';
SET idempotency.max_result_size = -1;
SET idempotency.max_result_size = '1h';
SET idempotency.require_scope = 'perhaps';
-- a typing error is no setting
SET idempotency.defualt_ttl = '1h';
SET ROLE regress_idem_nobody;
SET idempotency.require_scope = on;
SET idempotency.default_ttl = '1h';
SELECT idem_begin('k');
SELECT idem_digest('k');
SELECT idem_grant('regress_idem_nobody');
SELECT count(*) FROM idem_keys;
RESET ROLE;
RESET ALL;

CREATE SCHEMA regress_idem_elsewhere;
-- not relocatable
ALTER EXTENSION idempotency SET SCHEMA regress_idem_elsewhere;

DROP SCHEMA regress_idem_elsewhere;
DROP VIEW members;
DROP ROLE regress_idem_nobody;
