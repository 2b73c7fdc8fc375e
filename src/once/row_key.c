/*-------------------------------------------------------------------------
 *
 * row_key.c
 *	  The idempotency key made from columns of a row.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"

#include "base/compat.h"
#include "base/key.h"
#include "once/row_key.h"

/*
 * The settings that output functions depend on.  search_path decides whether reg* types
 * show a schema.
 */
static const struct
{
	const char *name;
	const char *value;
} settings[] = {
	{"bytea_output", "hex"},	   {"datestyle", "ISO"}, {"extra_float_digits", "3"},
	{"intervalstyle", "postgres"}, {"lc_monetary", "C"}, {"search_path", "pg_catalog"},
	{"timezone", "UTC"},
};

/* False for types whose text does not depend on settings, or is made here. */
static bool
needs_settings(Oid type)
{
	switch (type)
	{
		case BOOLOID:
		case CHAROID:
		case NAMEOID:
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case OIDOID:
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
		case UUIDOID:
		case NUMERICOID:
		case DATEOID:
		case TIMEOID:
		case TIMETZOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			return false;
		default:
			return get_typtype(type) != TYPTYPE_ENUM;
	}
}

bool
rowkey_make(RowKey *out, Relation rel, List *names, const char **missing)
{
	ListCell *lc;

	out->ncolumns = 0;
	out->columns = palloc0_array(RowKeyColumn, list_length(names));
	foreach(lc, names)
	{
		RowKeyColumn *column = &out->columns[out->ncolumns++];
		Oid output;
		bool is_varlena;

		*missing = lfirst(lc);
		column->number = get_attnum(RelationGetRelid(rel), *missing);
		if (column->number <= 0)
			return false;
		column->type =
			getBaseType(TupleDescAttr(RelationGetDescr(rel), column->number - 1)->atttypid);
		column->needs_settings = needs_settings(column->type);
		getTypeOutputInfo(column->type, &output, &is_varlena);
		fmgr_info(output, &column->output);
	}
	return true;
}

static char *
date_text(Datum value, Oid type)
{
	const int utc = 0;

	return JsonEncodeDateTime(NULL, value, type, type == TIMESTAMPTZOID ? &utc : NULL);
}

/* char(n): trailing blanks are not part of the value */
static char *
bpchar_text(Datum value)
{
	BpChar *b = DatumGetBpCharPP(value);

	return pnstrdup(VARDATA_ANY(b), bpchartruelen(VARDATA_ANY(b), VARSIZE_ANY_EXHDR(b)));
}

static char *
value_text(RowKeyColumn *column, Datum value)
{
	char *text;

	switch (column->type)
	{
		case BPCHAROID:
			return bpchar_text(value);
		case NUMERICOID:
			return numeric_normalize(DatumGetNumeric(value));
		case DATEOID:
		case TIMEOID:
		case TIMETZOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			return date_text(value, column->type);
		case FLOAT4OID:
		case FLOAT8OID:
			text = OutputFunctionCall(&column->output, value);
			/* -0 equals 0 */
			return strcmp(text, "-0") == 0 ? text + 1 : text;
		default:
			return OutputFunctionCall(&column->output, value);
	}
}

static int
enter_settings(void)
{
	int level = NewGUCNestLevel();

	for (int i = 0; i < lengthof(settings); i++)
		(void) set_config_option(settings[i].name, settings[i].value, PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	return level;
}

/* The values as text, or NULL if one is NULL. */
static char **
row_texts(RowKey *key, Relation rel, HeapTuple row)
{
	Datum *values = palloc_array(Datum, key->ncolumns);
	char **texts = palloc_array(char *, key->ncolumns);
	bool settings_needed = false;
	int level = 0;

	for (int i = 0; i < key->ncolumns; i++)
	{
		bool isnull;

		values[i] = heap_getattr(row, key->columns[i].number, RelationGetDescr(rel), &isnull);
		if (isnull)
			return NULL;
		settings_needed |= key->columns[i].needs_settings;
	}

	/* after an error, the abort restores the settings */
	if (settings_needed)
		level = enter_settings();
	for (int i = 0; i < key->ncolumns; i++)
		texts[i] = value_text(&key->columns[i], values[i]);
	if (settings_needed)
		AtEOXact_GUC(true, level);
	return texts;
}

text *
rowkey_text(RowKey *key, Relation rel, HeapTuple row)
{
	char **texts = row_texts(key, rel, row);
	StringInfoData s;

	if (texts == NULL)
		return NULL;
	if (key->ncolumns == 1)
		return cstring_to_text(texts[0]);

	initStringInfo(&s);
	for (int i = 0; i < key->ncolumns; i++)
		appendStringInfo(&s, "%s%d:%s", i > 0 ? "," : "", pg_mbstrlen(texts[i]), texts[i]);
	return cstring_to_text_with_len(s.data, s.len);
}

char *
rowkey_display(RowKey *key, Relation rel, HeapTuple row)
{
	char **texts = row_texts(key, rel, row);
	StringInfoData s;
	int shown;

	initStringInfo(&s);
	for (int i = 0; texts != NULL && i < key->ncolumns; i++)
		appendStringInfo(&s, "%s%s", i > 0 ? ", " : "", texts[i]);
	shown = pg_mbcharcliplen(s.data, s.len, KEY_MESSAGE_CHARS);
	return psprintf("%.*s%s", shown, s.data, shown < s.len ? "..." : "");
}
