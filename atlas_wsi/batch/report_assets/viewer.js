"use strict";
// A zoomable slide with its classes over it. Tiles are plain pictures, so no server is needed.
const facts = JSON.parse(document.getElementById("facts").textContent);
const slider = document.getElementById("opacity");
const viewer = OpenSeadragon({
  id: "viewer",
  drawer: "canvas", // WebGL may not read pictures of file:// pages
  showNavigationControl: false,
  showNavigator: true,
  navigatorPosition: "BOTTOM_RIGHT",
  maxZoomPixelRatio: 6,
  gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
  tileSources: [
    {
      tileSource: {
        width: facts.width,
        height: facts.height,
        tileSize: facts.tile,
        maxLevel: facts.levels,
        getTileUrl: (level, x, y) => `tiles/${level}/${x}_${y}.jpg`,
      },
      width: 1,
    },
    {
      tileSource: { type: "image", url: "classes.png" },
      x: facts.classes.x,
      y: facts.classes.y,
      width: facts.classes.width,
      opacity: slider.valueAsNumber / 100,
    },
  ],
});
slider.addEventListener("input", () => {
  const classes = viewer.world.getItemAt(1);
  if (classes) classes.setOpacity(slider.valueAsNumber / 100);
});
