
# What tests of distributed keys share: a server that takes itself for a node of a Citus cluster,
# with the catalogs and functions of Citus that the extension uses and nothing of Citus.

package IdemCitus;

use strict;
use warnings;

use Exporter 'import';
use IdemTest;

our @EXPORT = qw(fake_citus fake_shards);

# All that there is before a table is distributed.  The node is the coordinator.
sub fake_citus
{
	my ($module) = build_module('fake_citus');

	return <<"SQL";
SET allow_system_table_mods = on;
SET client_min_messages = error;
CREATE TABLE pg_catalog.pg_dist_local_group (groupid integer NOT NULL PRIMARY KEY);
CREATE TABLE pg_catalog.pg_dist_partition (logicalrelid regclass NOT NULL, partmethod "char", partkey text, repmodel "char", colocationid integer);
CREATE UNIQUE INDEX pg_dist_partition_logical_relid_index ON pg_catalog.pg_dist_partition (logicalrelid);
CREATE TABLE pg_catalog.pg_dist_shard (logicalrelid regclass NOT NULL, shardid bigint NOT NULL);
CREATE UNIQUE INDEX pg_dist_shard_shardid_index ON pg_catalog.pg_dist_shard (shardid);
CREATE INDEX pg_dist_shard_logical_relid_index ON pg_catalog.pg_dist_shard (logicalrelid);
CREATE TABLE pg_catalog.pg_dist_placement (shardid bigint NOT NULL, groupid integer NOT NULL);
CREATE INDEX pg_dist_placement_shardid_index ON pg_catalog.pg_dist_placement (shardid);
CREATE TABLE fake_tenants (tenant text PRIMARY KEY, shardid bigint NOT NULL);
GRANT SELECT ON pg_catalog.pg_dist_local_group, pg_catalog.pg_dist_partition, pg_catalog.pg_dist_shard, pg_catalog.pg_dist_placement, fake_tenants TO PUBLIC;

CREATE FUNCTION pg_catalog.get_shard_id_for_distribution_column(regclass, "any") RETURNS bigint LANGUAGE c AS '$module';
CREATE FUNCTION pg_catalog.lock_shard_metadata(integer, bigint[]) RETURNS void LANGUAGE c AS '$module';
CREATE FUNCTION fake_invalidate() RETURNS trigger LANGUAGE c AS '$module';
CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON pg_catalog.pg_dist_local_group FOR EACH ROW EXECUTE FUNCTION fake_invalidate('');
CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON pg_catalog.pg_dist_partition FOR EACH ROW EXECUTE FUNCTION fake_invalidate('logicalrelid');
CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON pg_catalog.pg_dist_shard FOR EACH ROW EXECUTE FUNCTION fake_invalidate('logicalrelid');
CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON pg_catalog.pg_dist_placement FOR EACH ROW EXECUTE FUNCTION fake_invalidate('shardid');
CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON fake_tenants FOR EACH ROW EXECUTE FUNCTION fake_invalidate('all');
INSERT INTO pg_catalog.pg_dist_local_group VALUES (0);

-- what idem_distribute() calls
CREATE TABLE fake_workers (nodename text, nodeport integer, extension text, keys text);
CREATE FUNCTION pg_catalog.column_to_column_name(regclass, text) RETURNS text LANGUAGE sql AS 'SELECT \$2';
CREATE FUNCTION pg_catalog.run_command_on_workers(text) RETURNS TABLE (nodename text, nodeport integer, success boolean, result text) LANGUAGE sql AS
\$\$ SELECT nodename, nodeport, true, CASE WHEN \$1 LIKE 'SELECT count%' THEN keys ELSE extension END FROM public.fake_workers \$\$;
CREATE FUNCTION pg_catalog.create_distributed_table(table_name regclass, distribution_column text, colocate_with text DEFAULT NULL) RETURNS void LANGUAGE plpgsql AS \$\$
BEGIN
	INSERT INTO pg_catalog.pg_dist_partition VALUES (table_name, 'h', distribution_column, 's', 1);
END \$\$;
CREATE FUNCTION pg_catalog.create_distributed_function(function_name regprocedure, distribution_arg_name text, colocate_with text, force_delegation boolean) RETURNS void LANGUAGE sql AS '';

-- a shard of idem_tenant_keys, placed on that group
CREATE FUNCTION add_shard(shard bigint, grp integer) RETURNS void LANGUAGE plpgsql AS \$\$
BEGIN
	EXECUTE format('CREATE TABLE public.idem_tenant_keys_%s (LIKE public.idem_tenant_keys INCLUDING ALL)', shard);
	INSERT INTO pg_catalog.pg_dist_shard VALUES ('public.idem_tenant_keys', shard);
	INSERT INTO pg_catalog.pg_dist_placement VALUES (shard, grp);
END \$\$;
-- A shard goes, as when it is split.  Its table stays for a while.
CREATE FUNCTION remove_shard(shard bigint) RETURNS void LANGUAGE plpgsql AS \$\$
BEGIN
	DELETE FROM pg_catalog.pg_dist_placement p WHERE p.shardid = shard;
	DELETE FROM pg_catalog.pg_dist_shard s WHERE s.shardid = shard;
END \$\$;
-- A move, or its end: waits for writers as Citus does.  Returns how many rows it would copy.
CREATE FUNCTION move_shard(shard bigint, grp integer) RETURNS bigint LANGUAGE plpgsql AS \$\$
DECLARE
	n bigint;
BEGIN
	PERFORM lock_shard_metadata(7, ARRAY[shard]);
	EXECUTE format('SELECT count(*) FROM public.idem_tenant_keys_%s', shard) INTO n;
	UPDATE pg_catalog.pg_dist_placement p SET groupid = grp WHERE p.shardid = shard;
	RETURN n;
END \$\$;
SQL
}

# A table "orders" with tenants of that type, and the keys beside it: shard 1001 is on this node,
# 1002 on another one.  All tenants have the first but for those that are given.
sub fake_shards
{
	my ($type, @elsewhere) = @_;

	return <<"SQL" . join('', map { "INSERT INTO fake_tenants VALUES ('$_', 1002);\n" } @elsewhere);
SET client_min_messages = error;
CREATE TABLE orders (tenant $type NOT NULL, item text);
SELECT create_distributed_table('orders', 'tenant');
SELECT idem_distribute('orders');
SELECT add_shard(1001, 0), add_shard(1002, 1);
SQL
}

1;
