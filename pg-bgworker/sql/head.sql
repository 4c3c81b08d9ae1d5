\echo Use "CREATE EXTENSION lake" to load this file. \quit

-- Everything that people name. Only the extensions lake and lake_query put objects here.
CREATE SCHEMA lake;
GRANT USAGE ON SCHEMA lake TO PUBLIC;
COMMENT ON SCHEMA lake IS 'Lakemirror: mirrored tables, and the functions and views to run them';

-- The Iceberg catalog and the mirror's own tables: for the engine, and for roles that are granted it.
CREATE SCHEMA lake_catalog;
COMMENT ON SCHEMA lake_catalog IS 'Lakemirror: the Iceberg catalog (JDBC layout) and the registry of the mirror';

