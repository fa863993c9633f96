"""From features and judgements to scores, tables, comparisons and figures."""
