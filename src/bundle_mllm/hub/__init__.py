"""From a trained folder to the Hub and to other formats: card, publish, verify, convert, export."""
