import { defineConfig } from "vite";

export default defineConfig({
  base: "/",
  build: {
    target: "es2022",
    // The policy of the page admits its own files alone, and none in its text.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    // It is built where the package is, and a map would be larger than all the rest.
    sourcemap: false,
    reportCompressedSize: false,
  },
});
