"""Items through the engine: read ahead, encoded, admitted, answered."""
